"""The command line of `hrmedseg demo`. Imports nothing heavy."""

from __future__ import annotations

import argparse

__all__ = ["add_demo_arguments"]


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
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
