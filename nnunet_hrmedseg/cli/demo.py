"""`hrmedseg demo`."""

from __future__ import annotations

import argparse

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "plan, train at 1024 x 1024 and predict on real microscopy images that travel with the package"
DESCRIPTION = (
    "Run nnU-Net's own commands from raw images to predictions, at 1024 x 1024 pixels, on 24 training and 8 held-"
    "out microscopy images that travel with the package. Prints the Dice of each held-out image and writes "
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
    parser.add_argument("--overwrite", action="store_true", help="delete what an earlier demo left in its folder")


def run(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.demo.run import run_demo

    return run_demo(args.output, device=args.device, overwrite=args.overwrite)
