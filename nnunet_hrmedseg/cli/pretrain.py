"""`hrmedseg encoder pretrain`."""

from __future__ import annotations

import argparse

from nnunet_hrmedseg.cli.argument_types import (
    not_negative_float,
    positive_int,
)
from nnunet_hrmedseg.cli.encoder_options import (
    add_run_arguments,
    add_student_arguments,
    magnification,
    run_options,
    student_options,
)

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "make an encoder to start training from, out of labeled 2D datasets, several at once"
DESCRIPTION = (
    "Train the small encoder of HRMedSeg on labeled 2D nnU-Net datasets, several at once. Writes "
    "encoder.safetensors, which training starts from (HRMEDSEG_ENCODER_WEIGHTS). Required: -d and -o. A run that "
    "was stopped continues when the command is repeated."
)
ON_INTERRUPTION = "To continue from the last checkpoint, repeat the command."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-d",
        "--datasets",
        required=True,
        nargs="+",
        metavar="DATASET",
        help="labeled 2D nnU-Net raw datasets: names or numbers in nnUNet_raw, or folders",
    )
    add_student_arguments(parser)
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument(
        "--image_steps",
        type=positive_int,
        default=20000,
        help="length of the training: number of images that are seen, repetitions included [default: %(default)s]",
    )
    recipe.add_argument(
        "--batch_size", type=positive_int, default=8, help="images in a batch of each process [default: %(default)s]"
    )
    recipe.add_argument(
        "--lr", type=not_negative_float, default=4e-4, help="learning rate of Adam [default: %(default)s]"
    )
    recipe.add_argument(
        "--zoom",
        type=magnification,
        nargs=2,
        default=(1, 1),
        metavar=("MIN", "MAX"),
        help="show windows of the images, magnified up to MAX times (a small canvas then trains for a large one), and "
        "whole images between mirrored copies, down to MIN of their size [default: 1 1, whole images]",
    )
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.encoders.options import PretrainingOptions
    from nnunet_hrmedseg.encoders.pretrain import pretrain

    pretrain(
        datasets=args.datasets,
        output=args.output,
        student=student_options(args),
        recipe=PretrainingOptions(
            image_steps=args.image_steps, batch_size=args.batch_size, learning_rate=args.lr, zoom=tuple(args.zoom)
        ),
        run=run_options(args),
    )
    return 0
