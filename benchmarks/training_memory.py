"""Peak memory of one training step, counted tensor by tensor, compared with the estimate that sets the batch size.

    python benchmarks/training_memory.py            prints the table, writes benchmarks/results/training_memory.json
    python benchmarks/training_memory.py --fit      prints coefficients for plans/memory.py from that file

The script counts the live bytes of all tensors allocated by forward pass, loss and backward pass (float32; the count
does not depend on the device), and adds weights, gradients and Adam's two averages.
"""

from __future__ import annotations

import argparse
import json
import platform
import weakref
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_hrmedseg.architectures import HRMedSeg
from nnunet_hrmedseg.plans.hrmedseg_memory import (
    PARAMETERS_PER_LAYER_AND_SQUARED_WIDTH,
    PARAMETERS_WITHOUT_ENCODER,
    HRMedSegMemory,
)
from nnunet_hrmedseg.plans.memory import BYTES_PER_PARAMETER
from nnunet_hrmedseg.trainers.losses import dice_and_focal

RESULTS = Path(__file__).parent / "results"
DEFAULTS = {
    "canvas": (512, 512),
    "batch_size": 1,
    "classes": 2,
    "channels": 3,
    "embed_dim": 96,
    "depth": 10,
    "recompute": False,
}
ROWS = [
    {},
    {"classes": 1},
    {"classes": 5},
    {"classes": 20},
    {"channels": 1},
    {"channels": 8},
    {"depth": 4},
    {"depth": 16},
    {"embed_dim": 48},
    {"embed_dim": 192},
    {"embed_dim": 384},
    {"embed_dim": 192, "depth": 4},
    {"canvas": (512, 256)},
    {"canvas": (256, 256), "batch_size": 4},
    {"batch_size": 3, "classes": 10},
    {"canvas": (1024, 512), "classes": 5},
    {"canvas": (1024, 1024)},
    {"canvas": (1024, 1024), "batch_size": 4},
]


class LiveBytes(TorchDispatchMode):
    """Track all storages created while the mode is active; `peak` is the largest sum of live bytes."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._follow(leaf.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def counted_gb(row: dict) -> float:
    """Return the peak memory of one training step in GB (1e9 bytes)."""
    network = HRMedSeg(
        row["channels"],
        row["classes"],
        embed_dim=row["embed_dim"],
        depth=row["depth"],
        recompute=row["recompute"],
    ).train()
    network.upsample_in_training = False
    loss = dice_and_focal(regions=row["classes"] == 1, recompute=row["recompute"])
    return step_gb(network, loss, (row["batch_size"], row["channels"], *row["canvas"]), max(2, row["classes"]))


def step_gb(network: nn.Module, loss: nn.Module, image_shape: tuple[int, ...], labels: int) -> float:
    """Return the peak memory of one training step in GB for any network and loss.

    Images are (B, C, ...), labels are 0 to `labels` - 1.
    """
    batch_size, _, *size = image_shape
    parameters = sum(p.numel() * p.element_size() for p in network.parameters())
    with LiveBytes() as counter:
        image = torch.rand(*image_shape)
        target = torch.randint(0, labels, (batch_size, 1, *size), dtype=torch.int16)
        loss(network(image), target).backward()
    # the count includes the gradients
    return (counter.peak + 3 * parameters) / 1e9


def estimated_gb(row: dict) -> float:
    """Return the estimate of the plans in GB."""
    return HRMedSegMemory().training_gb(
        row["batch_size"],
        row["canvas"],
        num_input_channels=row["channels"],
        num_classes=row["classes"],
        embed_dim=row["embed_dim"],
        depth=row["depth"],
        recompute=row["recompute"],
    )


def fit(rows: list[dict]) -> None:
    """Fit the relative error by least squares, for both settings of recompute."""
    for recompute in (False, True):
        equations, right = [], []
        for row in rows:
            if row["recompute"] is not recompute:
                continue
            pixels = row["batch_size"] * row["canvas"][0] * row["canvas"][1]
            width, depth = row["embed_dim"], row["depth"]
            parameters = PARAMETERS_WITHOUT_ENCODER + PARAMETERS_PER_LAYER_AND_SQUARED_WIDTH * width**2 * depth
            of_images = row["counted_gb"] * 1e9 - BYTES_PER_PARAMETER * parameters
            terms = np.array([1, width, width * depth, row["classes"], row["channels"]])
            equations.append(terms * pixels / (row["counted_gb"] * 1e9))
            right.append(of_images / (row["counted_gb"] * 1e9))
        print(f"recompute={recompute}:", np.linalg.lstsq(np.array(equations), np.array(right), rcond=None)[0].round(3))


def measure_or_fit(
    description: str,
    output: Path,
    rows: Sequence[dict],
    counted_gb: Callable[[dict], float],
    estimated_gb: Callable[[dict], float],
    fit: Callable[[list[dict]], None],
) -> None:
    """Run the command line: count all rows with and without recompute beside the estimate, or --fit the estimate."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=output)
    parser.add_argument("--fit", action="store_true")
    args = parser.parse_args()
    if args.fit:
        fit(json.loads(args.output.read_text())["rows"])
        return
    measured = []
    print(f"{'':<100} counted GB  estimated GB  ratio")
    for recompute in (False, True):
        for changes in rows:
            row = {**changes, "recompute": recompute}
            counted, estimated = counted_gb(row), estimated_gb(row)
            measured.append({**row, "counted_gb": round(counted, 4), "estimated_gb": round(estimated, 4)})
            print(f"{row!s:<100} {counted:10.3f}  {estimated:12.3f}  {estimated / counted:5.2f}", flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    machine = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    args.output.write_text(
        json.dumps({"date": str(date.today()), **machine, "dtype": "float32", "rows": measured}, indent=1)
    )
    print(f"wrote {args.output}")


if __name__ == "__main__":
    every = [{**DEFAULTS, **changes} for changes in ROWS]
    measure_or_fit(__doc__, RESULTS / "training_memory.json", every, counted_gb, estimated_gb, fit)
