"""Measure the best Dice that logits at a quarter of the canvas allow, on each canvas of nnUNetPlannerHRMedSeg.

    python benchmarks/logits_resolution.py DATA [--images 150]

Each mask of a dataset is resized to the canvas and averaged over cells of 4 x 4 pixels. The share of a class in a cell
is what an ideal network would predict there: the logits are the logarithms of the shares. They are upsampled to the
canvas and to the image, bilinearly as in prediction, and the class with the largest logit is compared with the mask.
The script writes results/logits_resolution.json and prints the table of docs/benchmarks/canvas.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from nnunet_hrmedseg.plans.canvas_choice import canvases

try:
    from benchmarks.full_training_rows import DATASETS
    from benchmarks.recorded_rows import add_row
except ModuleNotFoundError:  # as a script
    from full_training_rows import DATASETS  # type: ignore[import-not-found, no-redef]
    from recorded_rows import add_row  # type: ignore[import-not-found, no-redef]

RESULTS = Path(__file__).parent / "results" / "logits_resolution.json"
STRIDE = 4  # pixels of the canvas per logit
SMALLEST_SHARE = 0.01  # limits the logits to those of a confident network


def ideal_prediction(mask: Tensor, num_classes: int, canvas: tuple[int, int]) -> Tensor:
    """Return the labels (Y, X) that a network without errors predicts for a mask (Y, X) on a canvas."""
    classes = F.one_hot(mask.long(), num_classes).permute(2, 0, 1)[None].float()
    resized = F.interpolate(classes, canvas, mode="bilinear", antialias=True)
    logits = F.avg_pool2d(resized, STRIDE).clamp(min=SMALLEST_SHARE).log()
    on_canvas = F.interpolate(logits, canvas, mode="bilinear")
    return F.interpolate(on_canvas, mask.shape, mode="bilinear").argmax(1)[0]


def dice_per_class(mask: Tensor, predicted: Tensor, num_classes: int) -> list[float]:
    """Return Dice of each class but the background; NaN for a class without pixels in the mask."""
    values = []
    for label in range(1, num_classes):
        true, found = mask == label, predicted == label
        values.append(float(2 * (true & found).sum() / (true.sum() + found.sum())) if true.any() else float("nan"))
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=150, help="masks per dataset, evenly spaced (default: 150)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, dataset in DATASETS.items():
        files = sorted((args.data / "labelled" / name / "masks").iterdir())
        files = files[:: -(-len(files) // args.images)]
        masks = [torch.from_numpy(np.asarray(Image.open(file)).copy()) for file in files]
        height, width = np.median([mask.shape for mask in masks], axis=0)
        num_classes = len(dataset.labels)
        for configuration, canvas in canvases((int(height), int(width))).items():
            dice = np.array(
                [dice_per_class(mask, ideal_prediction(mask, num_classes, canvas), num_classes) for mask in masks]
            )
            row = {
                "dataset": name,
                "images": len(masks),
                "configuration": configuration,
                "canvas": canvas,
                "dice": dict(zip(dataset.classes, np.nanmean(dice, axis=0).round(4).tolist(), strict=True)),
                "lowest": round(float(np.nanmin(dice)), 4),
            }
            add_row(RESULTS, row, ("dataset", "configuration"), "one core")
    print_table(json.loads(RESULTS.read_text()))


def print_table(rows: list[dict]) -> None:
    print("| dataset | configuration | canvas | best Dice | lowest case |\n|---|---|---|---|---|")
    for row in rows:
        dice = " / ".join(f"{value:.3f}" for value in row["dice"].values())
        canvas = " x ".join(map(str, row["canvas"]))
        cells = [DATASETS[row["dataset"]].title, f"`{row['configuration']}`", canvas, dice, f"{row['lowest']:.2f}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
