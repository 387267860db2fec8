"""`hrmedseg demo`."""

from __future__ import annotations

import argparse
import time

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "plan, train at 1024 x 1024 and predict on microscopy images that are part of the package"
DESCRIPTION = (
    "Run nnU-Net's own commands from raw images to predictions, at 1024 x 1024 pixels, on 24 training and 8 held-"
    "out microscopy images that are part of the package. Prints the Dice of each held-out image and writes "
    "demo.png. Nothing is required. It trains 10 epochs on a CUDA GPU and 1 epoch elsewhere."
)
ON_INTERRUPTION = "To start again, add --overwrite."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        default="hrmedseg_demo",
        metavar="FOLDER",
        help="folder to work in: new, or empty [default: %(default)s]",
    )
    parser.add_argument(
        "-device",
        choices=("cuda", "cpu", "mps"),
        default=None,
        help="device to train and predict on, as in nnU-Net [default: cuda, else mps, else cpu]",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="delete the results of an earlier demo in this folder [default: refuse]",
    )


def run(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.demo.run import run_demo

    started = time.monotonic()
    result = run_demo(args.output, device=args.device, overwrite=args.overwrite)
    print("\nDice of the held-out images")
    for case, value in {**result.dice, "mean": result.mean_dice}.items():
        print(f"  {case:<10} {value:.3f}")
    print(f"\nPicture: {result.picture}\nTook {(time.monotonic() - started) / 60:.1f} minutes on {result.device}.")
    return 0
