"""Compare optimizer settings on targets of a few pixels: some learn them, others end at one value for all pixels.

    python benchmarks/real_data.py prepare DATA WORK
    python benchmarks/tiny_targets.py WORK [--network HERSeg] [--settings NAME ...] [--steps 400]

The data are squares of 512 pixels of the canvas data of mlua_dental around caries (about 1 to 4 pixels in a thousand),
from the 19 training images of fold 0, so that nothing is chosen on images with reported results; mirrored, two per
batch. The learning rate is constant after the warm-up, as in the middle of a long training. The script writes, for
every 50 steps, the mean soft Dice of the training squares and the standard deviation of probabilities within an image.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_hrmedseg import architectures
from nnunet_hrmedseg.plans.overrides import hrmedseg_plans
from nnunet_hrmedseg.trainers.losses import dice_and_cross_entropy, dice_and_focal

try:
    from benchmarks import real_data
    from benchmarks.recipes.learning_rates import with_decoder_rate
    from benchmarks.recorded_rows import add_row
except ModuleNotFoundError:  # as a script
    import real_data  # type: ignore[import-not-found, no-redef]
    from recipes.learning_rates import with_decoder_rate  # type: ignore[import-not-found, no-redef]
    from recorded_rows import add_row  # type: ignore[import-not-found, no-redef]

RESULTS = Path(__file__).parent / "results" / "tiny_targets.json"
NAME, FOLD, SQUARE, EVERY = "mlua_dental", 0, 512, 50
WARMUP = 20
LOSSES = {"HRMedSeg": dice_and_focal, "HERSeg": dice_and_cross_entropy}


@dataclass(frozen=True)
class Settings:
    """A row of the table: settings of Adam."""

    learning_rate: float
    decoder_rate: float = 1.0  # rate of neck and decoder, relative to the learning rate
    beta2: float = 0.999


SETTINGS = {
    "1e-3": Settings(1e-3),
    "5e-4": Settings(5e-4),
    "3e-4": Settings(3e-4),
    "1e-3, beta2 0.95": Settings(1e-3, beta2=0.95),
    "1e-3, decoder x 0.1": Settings(1e-3, 0.1),
    "1e-3, decoder x 0.3, beta2 0.95": Settings(1e-3, 0.3, 0.95),
    "1e-3, decoder x 0.1, beta2 0.95": Settings(1e-3, 0.1, 0.95),
}


def training_images(preprocessed: Path) -> list[tuple[Tensor, Tensor]]:
    """Return (1, H, W) images and (1, H, W) labels."""
    import blosc2

    cases = json.loads((preprocessed / "splits_final.json").read_text())[FOLD]["train"]
    plans = json.loads((preprocessed / f"{real_data.PLANS}.json").read_text())
    folder = preprocessed / plans["configurations"]["2d"]["data_identifier"]

    def read(name: str) -> Tensor:
        return torch.from_numpy(np.asarray(blosc2.open(str(folder / f"{name}.b2nd"))[:]))[:, 0].float()

    return [(read(case), read(f"{case}_seg").clamp_min(0)) for case in cases]


def batches(images: list[tuple[Tensor, Tensor]], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    random = np.random.default_rng(seed)

    def square() -> tuple[Tensor, Tensor]:
        image, labels = images[random.integers(len(images))]
        caries = labels[0].nonzero()
        pixel = caries[random.integers(len(caries))].tolist()
        top, left = (
            int(np.clip(at - random.integers(SQUARE), 0, side - SQUARE))
            for at, side in zip(pixel, labels.shape[1:], strict=True)
        )
        both = torch.cat([image, labels])[:, top : top + SQUARE, left : left + SQUARE]
        both = both.flip([axis for axis in (1, 2) if random.random() < 0.5])
        return both[:-1], both[-1:]

    while True:
        first, second = zip(square(), square(), strict=True)
        yield torch.stack(first), torch.stack(second)


def learn(
    preprocessed: Path, images: list[tuple[Tensor, Tensor]], name: str, settings: Settings, steps: int, seed: int
) -> list[dict[str, Any]]:
    torch.manual_seed(seed)
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    plans = hrmedseg_plans(plans, "2d", num_training_cases=len(images), num_classes=2, network=name)
    options = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    network = getattr(architectures, name)(1, 2, **options).train()
    network.upsample_in_training = False
    loss = LOSSES[name](regions=False, recompute=False)
    groups = with_decoder_rate(network, settings.learning_rate, settings.decoder_rate)
    optimizer = torch.optim.Adam(groups, betas=(0.9, settings.beta2))
    rates = [group["lr"] for group in optimizer.param_groups]
    curve, recent = [], []
    for step, (image, labels) in zip(range(1, steps + 1), batches(images, seed), strict=False):
        for group, full in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = full * min(1.0, step / WARMUP)
        logits = network(image)
        optimizer.zero_grad()
        loss(logits, labels).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)  # as in nnU-Net
        optimizer.step()
        with torch.no_grad():
            foreground = F.interpolate(logits, size=labels.shape[2:], mode="bilinear").softmax(1)[:, 1:]
            dice = 2 * (foreground * labels).sum() / (foreground.sum() + labels.sum())
            recent.append((dice.item(), foreground.std((2, 3)).mean().item()))
        if step % EVERY == 0:
            soft_dice, contrast = np.mean(recent, 0).tolist()
            curve.append({"step": step, "soft Dice": soft_dice, "contrast": contrast})
            print(f"{name}, {settings}: {curve[-1]}", flush=True)
            recent = []
    return curve


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=real_data.absolute)
    parser.add_argument("--network", choices=LOSSES, default="HRMedSeg")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = args.work / "nnUNet_preprocessed" / real_data.folder_name(NAME, real_data.DATASETS[NAME])
    loaded = training_images(folder)
    for chosen in args.settings:
        row: dict[str, Any] = {"network": args.network, "settings": chosen, "seed": args.seed}
        row["curve"] = learn(folder, loaded, args.network, SETTINGS[chosen], args.steps, args.seed)
        add_row(RESULTS, row, ("network", "settings", "seed"), f"{torch.get_num_threads()} thread")
