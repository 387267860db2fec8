"""Peak memory of one training step of SegMaFormer, counted tensor by tensor, compared with the estimate of the plans.

    python -m benchmarks.segmaformer_memory          prints the table, writes results/segmaformer_memory.json
    python -m benchmarks.segmaformer_memory --fit    prints coefficients for plans/segmaformer.py from that file

Counted as in training_memory.py, with nnU-Net's loss.
"""

from __future__ import annotations

from math import prod

import numpy as np

from benchmarks.training_memory import RESULTS, measure_or_fit, step_gb
from nnunet_hrmedseg.architectures import SegMaFormer
from nnunet_hrmedseg.evaluation.benchmark.networks import nnunet_loss
from nnunet_hrmedseg.plans.memory import BYTES_PER_PARAMETER
from nnunet_hrmedseg.plans.segmaformer import (
    CHANNELS,
    PARAMETERS,
    SegMaFormerMemory,
    segmaformer_shape,
    tokens_of_stages,
)

DEFAULTS = {"patch": (64, 64, 64), "spacing": (1, 1, 1), "batch_size": 1, "classes": 3, "channels": 1}
ROWS = [
    {},
    {"classes": 2},
    {"classes": 8},
    {"classes": 20},
    {"channels": 4},
    {"batch_size": 2},
    {"patch": (64, 96, 64)},
    {"patch": (96, 96, 96), "classes": 4},
    {"patch": (40, 56, 40)},
    {"patch": (16, 128, 128), "spacing": (8, 1, 1)},
    {"patch": (20, 128, 96), "spacing": (10, 1.5, 1.5), "classes": 4},
    {"patch": (32, 96, 96), "spacing": (3, 0.76, 0.76), "classes": 14},
    {"patch": (12, 96, 96), "spacing": (5, 1, 1), "channels": 2, "batch_size": 2},
]


def counted_gb(row: dict) -> float:
    """Return the peak memory of one training step in GB (1e9 bytes)."""
    shape = segmaformer_shape(row["patch"], row["spacing"])
    arguments = {**shape, "recompute": row["recompute"]}
    network = SegMaFormer(row["channels"], row["classes"], **arguments).train()
    return step_gb(network, nnunet_loss(), (row["batch_size"], row["channels"], *row["patch"]), row["classes"])


def estimated_gb(row: dict) -> float:
    """Return the estimate of the plans in GB."""
    return SegMaFormerMemory().training_gb(
        row["batch_size"],
        row["patch"],
        num_input_channels=row["channels"],
        num_classes=row["classes"],
        strides=segmaformer_shape(row["patch"], row["spacing"])["strides"],
        recompute=row["recompute"],
    )


def fit(rows: list[dict]) -> None:
    """Fit the relative error by least squares, for both settings of recompute."""
    for recompute in (False, True):
        equations, right = [], []
        for row in rows:
            if row["recompute"] is not recompute:
                continue
            voxels = prod(row["patch"])
            first, second, *_ = tokens_of_stages(
                row["patch"], segmaformer_shape(row["patch"], row["spacing"])["strides"]
            )
            terms = np.array([first, second, voxels * row["classes"]])
            counted = row["counted_gb"] * 1e9
            known = BYTES_PER_PARAMETER * PARAMETERS + CHANNELS * voxels * row["channels"] * row["batch_size"]
            equations.append(terms * row["batch_size"] / counted)
            right.append((counted - known) / counted)
        solution = np.linalg.lstsq(np.array(equations), np.array(right), rcond=None)[0]
        print(f"recompute={recompute}:", solution.round(2))


if __name__ == "__main__":
    every = [{**DEFAULTS, **changes} for changes in ROWS]
    measure_or_fit(__doc__, RESULTS / "segmaformer_memory.json", every, counted_gb, estimated_gb, fit)
