"""The command lines of `hrmedseg distill`, `hrmedseg pretrain` and `hrmedseg encoder`. Imports nothing heavy."""

from __future__ import annotations

import argparse

from nnunet_hrmedseg.cli.argument_types import (
    not_negative_float,
    not_negative_int,
    positive_float,
    positive_int,
    probability,
)

__all__ = ["add_distill_arguments", "add_encoder_arguments", "add_pretrain_arguments"]


def add_distill_arguments(parser: argparse.ArgumentParser) -> None:
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
    _add_student_arguments(parser)
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
    _add_run_arguments(parser)


def add_pretrain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-d",
        "--datasets",
        required=True,
        nargs="+",
        metavar="DATASET",
        help="labelled 2D nnU-Net raw datasets: names or numbers in nnUNet_raw, or folders",
    )
    _add_student_arguments(parser)
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
        type=_magnification,
        nargs=2,
        default=(1, 1),
        metavar=("MIN", "MAX"),
        help="show windows of the images, magnified up to MAX times (a small canvas then trains for a large one), and "
        "whole images between mirrored copies, down to MIN of their size [default: 1 1, whole images]",
    )
    _add_run_arguments(parser)


def add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(
        dest="encoder_command", required=True, metavar="import", help="what to do with an encoder"
    )
    description = "Convert the encoder that the authors of HRMedSeg publish (SAM_PFD_10K.pth) to an encoder file"
    imported = commands.add_parser(
        "import", help=description[0].lower() + description[1:], description=f"{description}. Required: FILE and -o."
    )
    imported.add_argument(
        "source", metavar="FILE", help="SAM_PFD_10K.pth, or a checkpoint that was fine-tuned from it; also hf://..."
    )
    imported.add_argument(
        "-o", "--output", required=True, metavar="FOLDER", help="Folder for encoder.safetensors and encoder.json."
    )
    imported.add_argument(
        "--normalization",
        choices=("distillation", "imagenet"),
        default="distillation",
        help="Normalization of images that the encoder was made with, for its card: (x - mean) / mean as in the "
        "authors' distillation script, or ImageNet's mean and standard deviation [default: %(default)s]",
    )
    imported.add_argument("--overwrite", action="store_true", help="Replace an encoder in this folder.")


def _add_student_arguments(parser: argparse.ArgumentParser) -> None:
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


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
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
        "--data_licence", default="not stated", help="licence of the images, for the card [default: %(default)s]"
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


def _magnification(text: str) -> float:
    value = float(text)
    if not 1 / 64 <= value <= 64:
        raise argparse.ArgumentTypeError(f"{value:g} is not between 1/64 and 64")
    return value
