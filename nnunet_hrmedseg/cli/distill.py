"""`hrmedseg encoder distill`."""

from __future__ import annotations

import argparse

from nnunet_hrmedseg.cli.argument_types import (
    not_negative_float,
    not_negative_int,
    positive_float,
    positive_int,
    probability,
)
from nnunet_hrmedseg.cli.encoder_options import add_run_arguments, add_student_arguments, run_options, student_options

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "make an encoder to start training from, out of the features of a large teacher"
DESCRIPTION = (
    "Train the small encoder of HRMedSeg to give the features that a large teacher (SAM, SAM2 or a trained 2D "
    "nnU-Net) gives, on images without labels. Writes encoder.safetensors, which training starts from "
    "(HRMEDSEG_ENCODER_WEIGHTS). Required: --teacher, --images and -o. A run that was stopped continues when the "
    "command is repeated."
)
ON_INTERRUPTION = "To continue from the last checkpoint, repeat the command."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--teacher",
        required=True,
        metavar="PATH",
        help="model to learn from: SAM's original .pth; a transformers folder of SAM2 or SAM2.1; or the folder of a "
        "trained 2D nnU-Net",
    )
    parser.add_argument(
        "--teacher_kind",
        default=None,
        help="kind of the teacher: sam, sam2 or nnunet [default: recognized by its files]",
    )
    parser.add_argument(
        "--images",
        required=True,
        nargs="+",
        metavar="SOURCE",
        help="images to learn from: folders of images, SA-1B shards (sa_*.tar, or a folder of them), nnU-Net raw "
        "datasets (folder, name or number); labels are not needed",
    )
    parser.add_argument(
        "--limit",
        type=positive_int,
        default=None,
        help="maximum number of images, drawn by a hash of their names: always the same ones, and a larger limit "
        "adds to those of a smaller one [default: all]",
    )
    parser.add_argument(
        "--cache",
        default=None,
        metavar="FOLDER",
        help="folder to keep the teacher's embeddings in, in half precision, so that they are computed once "
        "[default: they are computed in every epoch]",
    )
    nnunet = parser.add_argument_group("an nnU-Net as the teacher")
    nnunet.add_argument(
        "--target",
        choices=("features", "logits"),
        default=None,
        help="output of the teacher that the student learns [default: features]",
    )
    nnunet.add_argument("--fold", default=None, help="fold of the teacher [default: the first that is trained]")
    nnunet.add_argument(
        "--checkpoint",
        default=None,
        help="name of the checkpoint file in the fold [default: checkpoint_final.pth, else checkpoint_best.pth]",
    )
    nnunet.add_argument(
        "--scale",
        type=positive_float,
        default=None,
        help="factor by which images are resized for the teacher, to the pixel size that it was trained at "
        "[default: 1]",
    )
    add_student_arguments(parser)
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument(
        "--epochs", type=positive_int, default=20, help="number of passes over the images [default: %(default)s]"
    )
    recipe.add_argument(
        "--batch_size", type=positive_int, default=4, help="images in a batch of each process [default: %(default)s]"
    )
    recipe.add_argument(
        "--lr", type=not_negative_float, default=1e-3, help="learning rate of Adam [default: %(default)s]"
    )
    recipe.add_argument(
        "--decay",
        type=positive_float,
        default=0.98,
        help="factor on the learning rate from one epoch to the next [default: %(default)s]",
    )
    recipe.add_argument(
        "--flip", type=probability, default=0.1, help="probability that an image is mirrored [default: %(default)s]"
    )
    recipe.add_argument(
        "--val_images",
        type=not_negative_int,
        default=64,
        help="number of images for validation, at most a tenth of all [default: %(default)s]",
    )
    recipe.add_argument(
        "--normalization",
        choices=("zscore", "imagenet"),
        default=None,
        help="normalization of the student's images: z-score of each image and channel, as nnU-Net's for natural "
        "images, or ImageNet's mean and deviation, with which the authors fine-tune [default: zscore; imagenet with "
        "--promptable]",
    )
    recipe.add_argument(
        "--promptable",
        action="store_true",
        help="make an encoder for hrmedseg segment: images are put on the canvas as the teacher's own predictor "
        "does (SAM: padded), and SAM2's levels at 1/4 and 1/8 are learned as well",
    )
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.encoders.distill import distill
    from nnunet_hrmedseg.encoders.options import DistillationOptions, TeacherOptions

    distill(
        teacher=args.teacher,
        images=args.images,
        output=args.output,
        limit=args.limit,
        cache=args.cache,
        teacher_options=TeacherOptions(
            kind=args.teacher_kind,
            target=args.target,
            fold=args.fold,
            checkpoint=args.checkpoint,
            scale=args.scale,
        ),
        student=student_options(args),
        recipe=DistillationOptions(
            epochs=args.epochs,
            batch_size=args.batch_size,
            learning_rate=args.lr,
            decay=args.decay,
            flip=args.flip,
            validation_images=args.val_images,
            normalization=args.normalization,
            promptable=args.promptable,
        ),
        run=run_options(args),
    )
    return 0
