"""`hrmedseg objects`."""

from __future__ import annotations

import argparse

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "separate the objects in predictions of a dataset that was made with --instances"
DESCRIPTION = (
    "Write an image of numbered objects (TIFF) for each prediction of a model whose dataset was made with hrmedseg "
    "dataset --instances: each core grows into the border around it. Required: -i and -o."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", "--input", required=True, metavar="FOLDER", help="folder of predicted label maps")
    parser.add_argument(
        "-o", "--output", required=True, metavar="FOLDER", help="folder for the images of numbered objects"
    )


def run(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.datasets.objects import separate_objects

    result = separate_objects(args.input, args.output)
    print(f"Wrote {sum(result.counts.values())} objects of {len(result.counts)} images to {result.folder}.")
    return 0
