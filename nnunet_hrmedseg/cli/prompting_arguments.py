"""The command lines of `hrmedseg segment` and `hrmedseg zeroshot`. Imports nothing heavy."""

from __future__ import annotations

import argparse

from nnunet_hrmedseg.cli.argument_types import not_negative_int, positive_int
from nnunet_hrmedseg.prompting.prompts import Box, Point, parse_box, parse_point

__all__ = ["add_segment_arguments", "add_zeroshot_arguments"]


def add_segment_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="an image, or a folder of images with --prompts")
    _add_network_arguments(parser)
    prompts = parser.add_argument_group("prompts", "in pixels of the image; x to the right, y downwards")
    prompts.add_argument(
        "--box",
        type=_box,
        action="append",
        default=[],
        metavar="x0,y0,x1,y1",
        help="left, top, right and bottom edge of a box around an object (not width and height); may be repeated",
    )
    prompts.add_argument(
        "--point",
        type=_point,
        action="append",
        default=[],
        metavar="x,y,label",
        help="label 1: in the object, 0: beside it; several belong to one object",
    )
    prompts.add_argument(
        "--prompts",
        default=None,
        metavar="FILE",
        help="CSV with the columns image,x0,y0,x1,y1 and, if you like, points and class; or the same as JSON",
    )
    prompts.add_argument(
        "--normalized",
        action="store_true",
        help="coordinates are parts of the image's width and height, between 0 and 1, instead of pixels",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "-o",
        "--output",
        default="hrmedseg_masks",
        metavar="FOLDER",
        help="for masks and overlays [default: %(default)s]",
    )
    output.add_argument(
        "--dataset",
        default=None,
        metavar="DATASET",
        help="write an nnU-Net raw data set of this name (Dataset123_Name) into nnUNet_raw instead",
    )
    output.add_argument("--instances", action="store_true", help="number the objects instead of naming their classes")
    output.add_argument("--no_overlay", action="store_true", help="only the masks")
    output.add_argument("--overwrite", action="store_true", help="replace masks that are there")


def add_zeroshot_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-d", "--dataset", required=True, metavar="DATASET", help="nnU-Net raw data set: name, number or folder"
    )
    parser.add_argument("--test", action="store_true", help="imagesTs and labelsTs instead of imagesTr and labelsTr")
    parser.add_argument("--limit", type=positive_int, default=None, help="only so many cases, evenly taken")
    _add_network_arguments(parser)
    parser.add_argument(
        "--teacher",
        nargs="?",
        const="",
        default=None,
        metavar="SAM",
        help="measure a whole SAM as well, with the same boxes [without a value: that of --sam]",
    )
    boxes = parser.add_argument_group("boxes, from the truth")
    boxes.add_argument(
        "--boxes",
        choices=("component", "class"),
        default="component",
        help="one for each connected component, or for each class, of an image or slice [default: %(default)s]",
    )
    boxes.add_argument(
        "--jitter",
        type=_not_negative,
        default=0.0,
        help="move each side at random by up to so many pixels; below 1: parts of the box's own size [default: 0]",
    )
    boxes.add_argument("--seed", type=not_negative_int, default=0, help="of --jitter [default: %(default)s]")
    parser.add_argument(
        "-o",
        "--output",
        default=None,
        metavar="FOLDER",
        help="folder to write the measures to [default: hrmedseg_zeroshot_DATASET, in the current folder]",
    )


def _add_network_arguments(parser: argparse.ArgumentParser) -> None:
    network = parser.add_argument_group("network")
    network.add_argument("--encoder", default=None, metavar="FILE", help="encoder.safetensors of hrmedseg distill")
    network.add_argument(
        "--sam",
        default=None,
        metavar="PATH",
        help="the SAM that it was distilled from: Meta's or MobileSAM's .pth, or a folder in transformers' format",
    )
    network.add_argument(
        "--multimask", action="store_true", help="choose the best of three masks for every prompt, not only for points"
    )
    network.add_argument(
        "--prompts_at_once", type=positive_int, default=16, help="less takes less memory [default: %(default)s]"
    )
    network.add_argument(
        "-device",
        choices=("cuda", "cpu", "mps"),
        default=None,
        help="device to predict on [default: cuda, else mps, else cpu]",
    )


def _box(text: str) -> Box:
    try:
        return parse_box(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no box: four numbers x0,y0,x1,y1") from None


def _point(text: str) -> Point:
    try:
        x, y, label = parse_point(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no point: three numbers x,y,label") from None
    return x, y, label


def _not_negative(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{value:g} is negative")
    return value
