"""Count the operations of a training step on host and GPU with a stand-in for CUDA; no GPU is needed.

    python scripts/fake_gpu/run.py python benchmarks/gpu_counts.py --title "name of this version" [--compiled]

The script counts the augmentation of a batch of 16 on the device (mean of 40 batches, because transforms are random),
and a complete `train_step` with it (eager or, with --compiled, compiled and with CUDA graphs), from a batch in pinned
memory as returned by the loader: kernel launches (calls of cuBLAS and cuDNN are counted separately), copies, bytes
transferred over the bus, copies from memory that is not pinned, and synchronizations (each makes the host wait for the
GPU). Rows with other titles in benchmarks/results/gpu_counts.json are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "scripts"), str(HERE.parent / "scripts" / "fake_gpu")]

import counters  # noqa: E402
import gpu_measurements  # noqa: E402

from benchmarks.recorded_rows import add_row  # noqa: E402
from nnunet_hrmedseg.trainers.batch_augmentation import BatchAugmentation  # noqa: E402
from nnunet_hrmedseg.trainers.compact_loading import image_dtype, target_dtype  # noqa: E402

SHOWN = (
    "launches",
    "blas_and_cudnn_calls",
    "copies_to_device",
    "pageable_copies_to_device",
    "copies_from_device",
    "bytes_to_device",
    "synchronizations",
)
IMAGES = 16


def counted(step: Callable[[], object], repeats: int) -> dict[str, float]:
    """Return the mean counts of a step, after four that fill the caches and capture CUDA graphs."""
    np.random.seed(0)
    torch.manual_seed(0)
    for _ in range(4):
        step()
    counters.counts()
    for _ in range(repeats):
        step()
    total = counters.counts()
    return {name: round(total[name] / repeats, 1) for name in SHOWN}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--title", required=True, help="names the rows, such as a version")
    parser.add_argument("--compiled", action="store_true", help="count compiled steps, which takes minutes")
    parser.add_argument("--repeats", type=int, default=40, help="batches (default: 40)")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results" / "gpu_counts.json")
    args = parser.parse_args()
    if not counters.present():
        sys.exit("Run this with the stand-in for CUDA: python scripts/fake_gpu/run.py python benchmarks/gpu_counts.py")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout.strip()

    def add(what: str, counts: dict[str, float]) -> None:
        row = {"title": args.title, "what": what, "images": IMAGES, "commit": commit or None, **counts}
        print(json.dumps(row))
        add_row(args.output, row, ("title", "what"), "stand-in for an H100")

    image = torch.empty(IMAGES, 3, gpu_measurements.SIDE, gpu_measurements.SIDE, device="cuda")
    target = torch.empty(IMAGES, 1, *image.shape[2:], dtype=torch.int16, device="cuda")
    augment = BatchAugmentation(gpu_measurements.transforms(), [0, 1])
    add("augmentation", counted(lambda: augment(image.clone(), target.clone()), args.repeats))

    with tempfile.TemporaryDirectory() as folder:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[name] = folder
        title = "training step, layers kept, with augmentation"
        ways: dict[str, dict[str, bool]] = {title: {}}
        if args.compiled:
            compiled = {"compiled": True}
            ways = {f"{title}, compiled": compiled, f"{title}, CUDA graphs": {**compiled, "cuda_graphs": True}}
        for what, options in ways.items():
            made = gpu_measurements.trainer(batch_size=IMAGES, **options)
            made.batch_augmentation = augment
            made.network.train()
            data = image_dtype(made.configuration_manager.normalization_schemes)
            labels = target_dtype(made.label_manager)
            batch = {
                name: torch.zeros(IMAGES, channels, *image.shape[2:], dtype=dtype).pin_memory()
                for name, channels, dtype in (("data", 3, data), ("target", 1, labels))
            }

            def step(made: Any = made, batch: dict[str, torch.Tensor] = batch) -> None:
                made.train_step(dict(batch))

            add(what, counted(step, max(2, args.repeats // 8)))


if __name__ == "__main__":
    main()
