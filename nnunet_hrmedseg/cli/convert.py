"""`hrmedseg convert`."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "convert new images, such as JPEG, to the format of a dataset, for nnUNetv2_predict"
DESCRIPTION = (
    "Write new images as hrmedseg dataset wrote those of a dataset: same format, channels and orientation, with "
    "nnU-Net's file names. Checks all images first. Required: IMAGES, -d and -o."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of new images, searched recursively")
    parser.add_argument(
        "-d", "--dataset", required=True, help="name or number of the dataset whose models will predict the images"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="new folder for the converted images"
    )
    parser.add_argument(
        "--link", action="store_true", help="hard-link files that need no conversion [default: copy them]"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an output folder of converted images [default: refuse]"
    )


def run(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.datasets.convert import convert_images
    from nnunet_hrmedseg.errors import format_names

    result = convert_images(args.images, args.output, dataset=args.dataset, link=args.link, overwrite=args.overwrite)
    print(f"Wrote {len(result.cases)} images to {result.folder}, the input folder for nnUNetv2_predict.")
    if result.skipped:
        print(f"Not images, left out: {format_names([str(file) for file in result.skipped])}")
    return 0
