"""`hrmedseg segment`."""

from __future__ import annotations

import argparse

from nnunet_hrmedseg.cli.prompting_options import add_network_arguments, box, point, prompting_options

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "make masks from boxes and points, with a distilled encoder and SAM's decoder"
DESCRIPTION = (
    "Make a mask for every box or group of points, in one image or in a folder of images, with an encoder that "
    "was distilled from a SAM and the decoder of that SAM. Coordinates are in pixels of the image. Required: "
    "IMAGE, --encoder, --sam, and one of --box, --point and --prompts (for a folder, --prompts)."
)
ON_INTERRUPTION = "Finished masks are kept, but not a dataset (--dataset), which is written whole or not at all."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="an image, or a folder of images with --prompts")
    add_network_arguments(parser)
    prompts = parser.add_argument_group("prompts", "in pixels of the image; x to the right, y downwards")
    prompts.add_argument(
        "--box",
        type=box,
        action="append",
        default=[],
        metavar="x0,y0,x1,y1",
        help="left, top, right and bottom edge of a box around an object (not width and height); may be repeated",
    )
    prompts.add_argument(
        "--point",
        type=point,
        action="append",
        default=[],
        metavar="x,y,label",
        help="a point with label 1 in the object, or 0 beside it; several points belong to one object",
    )
    prompts.add_argument(
        "--prompts",
        default=None,
        metavar="FILE",
        help="CSV file with the columns image,x0,y0,x1,y1 and, optionally, points and class; or the same as JSON",
    )
    prompts.add_argument(
        "--normalized",
        action="store_true",
        help="read coordinates as fractions of the image's width and height, from 0 to 1, instead of pixels",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "-o",
        "--output",
        default="hrmedseg_masks",
        metavar="FOLDER",
        help="folder for masks and overlays [default: %(default)s]",
    )
    output.add_argument(
        "--dataset",
        default=None,
        metavar="DATASET",
        help="write an nnU-Net raw dataset of this name (Dataset123_Name) into nnUNet_raw instead",
    )
    output.add_argument(
        "--instances", action="store_true", help="write numbers of objects instead of classes into the masks"
    )
    output.add_argument("--no_overlay", action="store_true", help="write the masks only, without overlays")
    output.add_argument("--overwrite", action="store_true", help="replace masks that are there already")


def run(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.errors import DataError
    from nnunet_hrmedseg.prompting.segment import segment

    result = segment(
        image=args.image,
        encoder=args.encoder,
        sam=args.sam,
        boxes=args.box,
        points=args.point,
        prompts=args.prompts,
        normalized=args.normalized,
        output=args.output,
        dataset=args.dataset,
        instances=args.instances,
        overlays=not args.no_overlay,
        overwrite=args.overwrite,
        options=prompting_options(args),
    )
    print(result.describe())
    if result.failures:
        raise DataError(result.describe_failures())
    return 0
