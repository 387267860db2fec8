"""`hrmedseg zeroshot`."""

from __future__ import annotations

import argparse

from nnunet_hrmedseg.cli.argument_types import not_negative_int, positive_int
from nnunet_hrmedseg.cli.prompting_options import add_network_arguments, not_negative, prompting_options

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "measure how well boxes alone segment a labeled dataset, also beside the whole SAM"
DESCRIPTION = (
    "Draw boxes around the labels of an nnU-Net raw dataset, segment its images from these boxes without any "
    "training, and measure Dice, IoU and Hausdorff distances (in mm, or in pixels for natural images). Writes "
    "cases.csv and summary.json. Required: -d, --encoder and --sam."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-d", "--dataset", required=True, metavar="DATASET", help="nnU-Net raw dataset: name, number or folder"
    )
    parser.add_argument(
        "--test", action="store_true", help="use imagesTs and labelsTs instead of imagesTr and labelsTr"
    )
    parser.add_argument(
        "--limit", type=positive_int, default=None, help="maximum number of cases, evenly spaced [default: all]"
    )
    add_network_arguments(parser)
    parser.add_argument(
        "--teacher",
        nargs="?",
        const="",
        default=None,
        metavar="SAM",
        help="SAM to measure as well with its own image encoder, from the same boxes [without a value: that of --sam]",
    )
    boxes = parser.add_argument_group("boxes around the labels")
    boxes.add_argument(
        "--boxes",
        choices=("component", "class"),
        default="component",
        help="one box for each connected component, or for each class, of an image or slice [default: %(default)s]",
    )
    boxes.add_argument(
        "--jitter",
        type=not_negative,
        default=0.0,
        help="maximum random shift of each side in pixels; below 1, as a fraction of the box's own size [default: 0]",
    )
    boxes.add_argument("--seed", type=not_negative_int, default=0, help="seed of --jitter [default: %(default)s]")
    parser.add_argument(
        "-o",
        "--output",
        default=None,
        metavar="FOLDER",
        help="folder to write the measures to [default: hrmedseg_zeroshot_DATASET, in the current folder]",
    )


def run(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.prompting.zeroshot import zeroshot

    result = zeroshot(
        dataset=args.dataset,
        encoder=args.encoder,
        sam=args.sam,
        whole_sam=args.sam if args.teacher == "" else args.teacher,
        test=args.test,
        limit=args.limit,
        boxes=args.boxes,
        jitter=args.jitter,
        seed=args.seed,
        output=args.output,
        options=prompting_options(args),
    )
    print(result.table())
    print(f"Wrote {result.folder / 'cases.csv'} and summary.json beside it.")
    return 0
