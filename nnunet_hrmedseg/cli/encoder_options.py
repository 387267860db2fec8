"""Options that `distill` and `pretrain` share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nnunet_hrmedseg.cli.argument_types import (
    not_negative_int,
    positive_int,
)

if TYPE_CHECKING:
    from nnunet_hrmedseg.encoders.options import RunOptions, StudentOptions

__all__ = ["add_run_arguments", "add_student_arguments", "magnification", "run_options", "student_options"]


def add_student_arguments(parser: argparse.ArgumentParser) -> None:
    student = parser.add_argument_group("student")
    student.add_argument(
        "--canvas",
        type=positive_int,
        nargs=2,
        default=(1024, 1024),
        metavar=("H", "W"),
        help="height and width in pixels that images are resized to, multiples of 16 [default: 1024 1024]",
    )
    student.add_argument(
        "--start",
        default=None,
        metavar="ENCODER",
        help="encoder file (.safetensors) to start from [default: random weights]",
    )
    student.add_argument(
        "--embed_dim", type=positive_int, default=96, help="width of the encoder [default: %(default)s]"
    )
    student.add_argument("--depth", type=int, default=10, help="number of encoder blocks [default: %(default)s]")
    student.add_argument(
        "--neck",
        choices=("1x1_3x3", "3x3_1x1"),
        default="1x1_3x3",
        help="neck of HRMedSeg (1x1_3x3) or of HER-Seg (3x3_1x1) [default: %(default)s]",
    )
    student.add_argument(
        "--decoder_dim", type=positive_int, default=256, help="width behind the neck [default: %(default)s]"
    )
    student.add_argument(
        "--drop_path",
        type=float,
        default=0.1,
        help="rate of stochastic depth, from 0 to below 1 [default: %(default)s]",
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("run")
    run.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FOLDER",
        help="folder to write encoder, card, losses and checkpoint to: new, empty, or that of the same run to continue",
    )
    run.add_argument(
        "--overwrite",
        action="store_true",
        help="start again where an earlier run left its folder [default: continue it]",
    )
    run.add_argument(
        "--name", default=None, help="name of the encoder on its card [default: named after teacher or datasets]"
    )
    run.add_argument(
        "--data_license",
        "--data_licence",
        default="not stated",
        metavar="LICENSE",
        help="license of the images, for the card [default: %(default)s]",
    )
    run.add_argument(
        "-device",
        choices=("cuda", "cpu", "mps"),
        default=None,
        help="device to train on [default: cuda, else mps, else cpu]",
    )
    run.add_argument(
        "--no_amp", dest="amp", action="store_false", help="train in float32 [default: mixed precision on CUDA]"
    )
    run.add_argument(
        "--workers",
        type=not_negative_int,
        default=2,
        help="number of processes that read images [default: %(default)s]",
    )
    run.add_argument("--seed", type=not_negative_int, default=0, help="seed of random numbers [default: %(default)s]")


def magnification(text: str) -> float:
    value = float(text)
    if not 1 / 64 <= value <= 64:
        raise argparse.ArgumentTypeError(f"{value:g} is not between 1/64 and 64")
    return value


def student_options(args: argparse.Namespace) -> StudentOptions:
    """Return the options of `add_student_arguments` as the Python API takes them."""
    from nnunet_hrmedseg.encoders.options import StudentOptions

    return StudentOptions(
        canvas=tuple(args.canvas),
        start=args.start,
        embed_dim=args.embed_dim,
        depth=args.depth,
        neck=args.neck,
        decoder_dim=args.decoder_dim,
        drop_path=args.drop_path,
    )


def run_options(args: argparse.Namespace) -> RunOptions:
    """Return the options of `add_run_arguments` as the Python API takes them."""
    from nnunet_hrmedseg.encoders.options import RunOptions

    return RunOptions(
        name=args.name,
        data_license=args.data_license,
        overwrite=args.overwrite,
        device=args.device,
        amp=args.amp,
        workers=args.workers,
        seed=args.seed,
    )
