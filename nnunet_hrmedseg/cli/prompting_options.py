"""Options that `segment` and `zeroshot` share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nnunet_hrmedseg.cli.argument_types import positive_int
from nnunet_hrmedseg.prompting.prompts import Box, Point, parse_box, parse_point

if TYPE_CHECKING:
    from nnunet_hrmedseg.prompting.options import PromptingOptions

__all__ = ["add_network_arguments", "box", "not_negative", "point", "prompting_options"]


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    network = parser.add_argument_group("network")
    network.add_argument(
        "--encoder", default=None, metavar="FILE", help="encoder.safetensors that hrmedseg encoder distill wrote"
    )
    network.add_argument(
        "--sam",
        default=None,
        metavar="PATH",
        help="SAM that the encoder was distilled from: Meta's or MobileSAM's .pth, or a folder in transformers' format",
    )
    network.add_argument(
        "--multimask", action="store_true", help="choose the best of three masks for every prompt, not only for points"
    )
    network.add_argument(
        "--prompts_at_once",
        type=positive_int,
        default=16,
        help="number of prompts that the decoder processes together; fewer need less memory [default: %(default)s]",
    )
    network.add_argument(
        "-device",
        choices=("cuda", "cpu", "mps"),
        default=None,
        help="device to predict on [default: cuda, else mps, else cpu]",
    )


def prompting_options(args: argparse.Namespace) -> PromptingOptions:
    """Return the options of `add_network_arguments` as the Python API takes them."""
    from nnunet_hrmedseg.prompting.options import PromptingOptions

    return PromptingOptions(multimask=args.multimask, prompts_at_once=args.prompts_at_once, device=args.device)


def box(text: str) -> Box:
    try:
        return parse_box(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a box: four numbers x0,y0,x1,y1") from None


def point(text: str) -> Point:
    try:
        x, y, label = parse_point(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a point: three numbers x,y,label") from None
    return x, y, label


def not_negative(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{value:g} is negative")
    return value
