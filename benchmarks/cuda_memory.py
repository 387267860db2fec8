"""Peak memory of training and validation on CUDA in mixed precision, compared with the estimate used for planning.

    python -m benchmarks.cuda_memory [--compile]    prints the table, writes benchmarks/results/cuda_memory.json

Peaks are those of torch's CUDA allocator and include weights, gradients, Adam's averages and the batch. The values in
the result file were measured with a stand-in for CUDA, which allocates memory but computes nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
from datetime import date
from pathlib import Path

import torch
from torch import nn

from benchmarks.training_memory import RESULTS
from nnunet_hrmedseg.architectures import HERSeg, HRMedSeg
from nnunet_hrmedseg.plans.hrmedseg_memory import HRMedSegMemory
from nnunet_hrmedseg.plans.memory import AUTOCAST, COMPILED
from nnunet_hrmedseg.trainers.losses import dice_and_focal

SIDE = 1024
NETWORKS = {"HRMedSeg": HRMedSeg, "HERSeg": HERSeg}
DEFAULTS = {"network": "HRMedSeg", "batch_size": 4, "classes": 2, "channels": 3, "embed_dim": 96, "depth": 10}
ROWS = [
    {},
    {"classes": 5},
    {"classes": 14},
    {"channels": 1},
    {"channels": 8},
    {"depth": 4},
    {"depth": 16},
    {"embed_dim": 48},
    {"embed_dim": 192},
    {"embed_dim": 384},
    {"batch_size": 1},
    {"batch_size": 2},
    {"batch_size": 16},
    {"batch_size": 16, "classes": 14},
    {"batch_size": 16, "network": "HERSeg"},
]


def measured_gb(row: dict, *, recompute: bool, compiled: bool) -> tuple[float, float]:
    """Return GB (1e9 bytes) at the peak of a training step and of a validation step."""
    gc.collect()
    torch.cuda.empty_cache()
    torch._dynamo.reset()
    network = NETWORKS[row["network"]](
        row["channels"], row["classes"], embed_dim=row["embed_dim"], depth=row["depth"], recompute=recompute
    )
    network.cuda().train().upsample_in_training = False
    loss, model = dice_and_focal(regions=False, recompute=recompute), network
    if compiled:
        model, loss.evaluate_strip = torch.compile(network), torch.compile(loss.evaluate_strip)
    optimizer, scaler = torch.optim.Adam(network.parameters(), lr=1e-3), torch.amp.GradScaler("cuda")
    image = torch.rand(row["batch_size"], row["channels"], SIDE, SIDE, device="cuda")
    if compiled:
        image = image.contiguous(memory_format=torch.channels_last)  # as the trainer passes it
    target = torch.zeros(row["batch_size"], 1, SIDE, SIDE, device="cuda", dtype=torch.int16)
    for _ in range(2):  # Adam's averages exist from the second step on
        torch.cuda.reset_peak_memory_stats()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda"):
            value = loss(model(image), target)
        scaler.scale(value).backward()
        del value
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
    training = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad(), torch.autocast("cuda"):
        loss.with_counts(network.eval().quarter_logits(image), target)
    return training, torch.cuda.max_memory_allocated() / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "cuda_memory.json")
    parser.add_argument("--compile", action="store_true", help="compile the network as nnU-Net does (minutes per row)")
    parser.add_argument("--rows", nargs="+", type=int, metavar="INDEX", help="rows of ROWS, from 0 (default: all)")
    args = parser.parse_args()
    rows = []
    for recompute in (False, True):
        for changes in ROWS if args.rows is None else [ROWS[index] for index in args.rows]:
            row = {**DEFAULTS, **changes}
            training, validation = measured_gb(row, recompute=recompute, compiled=args.compile)
            estimate = HRMedSegMemory().training_gb(
                row["batch_size"],
                (SIDE, SIDE),
                num_input_channels=row["channels"],
                num_classes=row["classes"],
                embed_dim=row["embed_dim"],
                depth=row["depth"],
                recompute=recompute,
                mode=COMPILED if args.compile else AUTOCAST,
            )
            found = {"training_gb": training, "validation_gb": validation, "estimated_gb": estimate}
            rows.append({**row, "recompute": recompute, **{name: round(gb, 4) for name, gb in found.items()}})
            print(rows[-1], flush=True)
    machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "compiled": args.compile}
    args.output.write_text(json.dumps({"date": str(date.today()), **machine, "side": SIDE, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
