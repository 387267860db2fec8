"""Options that several commands share."""

from __future__ import annotations

import argparse

from nnunet_hrmedseg.cli.argument_types import positive_int
from nnunet_hrmedseg.prompting.prompts import Box, Point, parse_box, parse_point

__all__ = ["add_network_arguments", "box", "point", "not_negative"]


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
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


def box(text: str) -> Box:
    try:
        return parse_box(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no box: four numbers x0,y0,x1,y1") from None


def point(text: str) -> Point:
    try:
        x, y, label = parse_point(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no point: three numbers x,y,label") from None
    return x, y, label


def not_negative(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{value:g} is negative")
    return value
