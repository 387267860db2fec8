"""Compare how the three pools of the multi-scale module are fused with the identity, by short trainings.

    python benchmarks/pooling_fusion.py DATA/dsb2018 DATA/jsrt

A data folder contains images/ and masks/ (class-index PNGs with the same names). For each fusion, the whole network is
trained from random weights for the same few image-steps at 512 x 512 and evaluated by the Dice of 24 held-out images;
flips are the only augmentation. Results are written to benchmarks/results/pooling_fusion.json.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from skimage import io
from skimage.color import gray2rgb
from skimage.transform import resize
from torch.nn import functional as F

from nnunet_hrmedseg.architectures import HRMedSeg
from nnunet_hrmedseg.architectures.multiscale_pooling import sum_of_pools

SIZES = (5, 9, 13)
FUSIONS: dict[str, Callable] = {
    "none": lambda x, pools: x,
    "x + sum(pool - x)": lambda x, pools: x + sum(pool - x for pool in pools),
    "x + mean(pool)": lambda x, pools: x + sum(pools) / len(pools),
    "(x + mean(pool)) / 2": lambda x, pools: (x + sum(pools) / len(pools)) / 2,
    "(x + sum(pool)) / 4": lambda x, pools: (x + sum(pools)) / 4,
}
CANVAS, BATCH, STEPS, HELD_OUT, TRAINING = 512, 4, 130, 24, 96


class Fusion(torch.nn.Module):
    """A module that replaces the network's multi-scale module."""

    def __init__(self, fuse: Callable):
        super().__init__()
        self.fuse = fuse

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fuse(x, [sum_of_pools(x, [size], weight=0) for size in SIZES])


def load(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Load the same random cases for every fusion: (N, 3, 512, 512) z-scored images and (N, 512, 512) labels."""
    masks = sorted((folder / "masks").glob("*.png"))
    chosen = np.random.RandomState(0).permutation(len(masks))[: TRAINING + HELD_OUT]
    images, labels = [], []
    for index in chosen:
        mask = masks[index]
        image = io.imread(next((folder / "images").glob(f"{mask.stem}.*")))
        image = gray2rgb(image)[..., :3]
        image = resize(image.astype(np.float32), (CANVAS, CANVAS), order=1, anti_aliasing=True)
        images.append(((image - image.mean()) / (image.std() + 1e-3)).transpose(2, 0, 1))
        labels.append(resize(io.imread(mask), (CANVAS, CANVAS), order=0, preserve_range=True, anti_aliasing=False))
    return torch.tensor(np.stack(images)), torch.tensor(np.stack(labels).astype(np.int64))


def train(images: torch.Tensor, labels: torch.Tensor, fuse: Callable, seed: int) -> float:
    """Return the mean Dice over classes and held-out images (the last 24) after training on the others."""
    torch.manual_seed(seed)
    random = np.random.RandomState(seed)
    classes = int(labels.max()) + 1
    network = HRMedSeg(3, classes)
    network.decoder.transformer.delta = Fusion(fuse)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=STEPS, pct_start=0.15)
    for _ in range(STEPS):
        batch = random.randint(0, len(images) - HELD_OUT, BATCH)
        x, y = images[batch], labels[batch]
        if random.rand() < 0.5:
            x, y = x.flip(3), y.flip(2)
        logits = network(x)
        truth = F.one_hot(y, classes).permute(0, 3, 1, 2).float()
        p = logits.softmax(1)
        dice = (2 * (p * truth).sum((0, 2, 3)) + 1) / ((p + truth).sum((0, 2, 3)) + 1)
        loss = 1 - dice[1:].mean() + F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        schedule.step()
    network.eval()
    scores = []
    with torch.no_grad():
        for x, y in zip(images[-HELD_OUT:], labels[-HELD_OUT:], strict=True):
            prediction = network(x[None]).argmax(1)[0]
            for c in range(1, classes):
                a, b = prediction == c, y == c
                scores.append(float(2 * (a & b).sum() / (a.sum() + b.sum()).clamp_min(1)))
    return float(np.mean(scores))


def main() -> None:
    default_output = Path(__file__).parent / "results" / "pooling_fusion.json"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, default=default_output)
    args = parser.parse_args()
    machine = {"torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads()}
    result: dict = {"date": str(date.today()), **machine, "image_steps": BATCH * STEPS, "canvas": CANVAS, "dice": {}}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        for folder in args.data:
            images, labels = load(folder)
            for name, fuse in FUSIONS.items():
                dice = train(images, labels, fuse, seed)
                result["dice"].setdefault(folder.name, {}).setdefault(name, []).append(round(dice, 4))
                print(f"{folder.name:<12} seed {seed}  {name:<22} {dice:.4f}", flush=True)
                args.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
