"""The command lines of `hrmedseg distill`, `hrmedseg pretrain` and `hrmedseg encoder`. Imports nothing heavy."""

from __future__ import annotations

import argparse

from nnunet_hrmedseg.argument_types import not_negative_int, positive_int

__all__ = ["add_distill_arguments", "add_encoder_arguments", "add_pretrain_arguments"]


def add_distill_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--teacher",
        required=True,
        metavar="PATH",
        help="SAM's original .pth; a transformers folder of SAM2 or SAM2.1; or the folder of a trained 2D nnU-Net",
    )
    parser.add_argument("--teacher_kind", default=None, help="sam, sam2 or nnunet [default: recognised]")
    parser.add_argument(
        "--images",
        required=True,
        nargs="+",
        metavar="SOURCE",
        help="folders of images, SA-1B shards (sa_*.tar, or a folder of them), nnU-Net raw data sets (folder, name or "
        "number); labels are not needed",
    )
    parser.add_argument(
        "--limit",
        type=positive_int,
        default=None,
        help="use only so many of the images, drawn by a hash of their names: every time the same ones, and a larger "
        "limit adds to those of a smaller one",
    )
    parser.add_argument(
        "--cache", default=None, metavar="FOLDER", help="keep the teacher's embeddings there, in half precision"
    )
    nnunet = parser.add_argument_group("an nnU-Net as the teacher")
    nnunet.add_argument("--target", choices=("features", "logits"), default=None, help="what of it the student learns")
    nnunet.add_argument("--fold", default=None, help="[default: the first there is]")
    nnunet.add_argument("--checkpoint", default=None, help="[default: checkpoint_final.pth, else checkpoint_best.pth]")
    nnunet.add_argument(
        "--scale", type=float, default=None, help="resize its images by this factor: the pixel size it was trained at"
    )
    _add_student_arguments(parser)
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--epochs", type=positive_int, default=20, help="[default: %(default)s]")
    recipe.add_argument("--batch_size", type=positive_int, default=4, help="of each process [default: %(default)s]")
    recipe.add_argument("--lr", type=float, default=1e-3, help="learning rate of Adam [default: %(default)s]")
    recipe.add_argument("--decay", type=float, default=0.98, help="of the rate, per epoch [default: %(default)s]")
    recipe.add_argument("--flip", type=float, default=0.1, help="probability of a flip [default: %(default)s]")
    recipe.add_argument(
        "--val_images", type=not_negative_int, default=64, help="kept back, at most a tenth [default: %(default)s]"
    )
    recipe.add_argument(
        "--normalization",
        choices=("zscore", "imagenet"),
        default=None,
        help="of the student's images: nnU-Net's for natural images, or ImageNet's mean and deviation, with which "
        "the authors fine-tune [default: zscore; imagenet with --promptable]",
    )
    recipe.add_argument(
        "--promptable",
        action="store_true",
        help="for hrmedseg segment: images are put on the canvas as the teacher's own predictor does (SAM: padded), "
        "and SAM2's levels at 1/4 and 1/8 are learned as well",
    )
    _add_run_arguments(parser)


def add_pretrain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-d",
        "--datasets",
        required=True,
        nargs="+",
        metavar="DATASET",
        help="labelled 2D nnU-Net raw data sets: names or numbers in nnUNet_raw, or folders",
    )
    _add_student_arguments(parser)
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--image_steps", type=positive_int, default=20000, help="[default: %(default)s]")
    recipe.add_argument("--batch_size", type=positive_int, default=8, help="of each process [default: %(default)s]")
    recipe.add_argument("--lr", type=float, default=4e-4, help="learning rate of Adam [default: %(default)s]")
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
    commands = parser.add_subparsers(dest="encoder_command", required=True)
    imported = commands.add_parser(
        "import", help="convert the encoder that the authors of HRMedSeg publish (SAM_PFD_10K.pth) to an encoder file"
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
        "--canvas", type=positive_int, nargs=2, default=(1024, 1024), metavar=("H", "W"), help="[default: 1024 1024]"
    )
    student.add_argument(
        "--start", default=None, metavar="ENCODER", help="start from this encoder file (.safetensors) [default: random]"
    )
    student.add_argument("--embed_dim", type=positive_int, default=96, help="width [default: %(default)s]")
    student.add_argument("--depth", type=int, default=10, help="[default: %(default)s]")
    student.add_argument(
        "--neck",
        choices=("1x1_3x3", "3x3_1x1"),
        default="1x1_3x3",
        help="of HRMedSeg, or of HER-Seg [default: %(default)s]",
    )
    student.add_argument("--decoder_dim", type=positive_int, default=256, help="width after it [default: %(default)s]")
    student.add_argument("--drop_path", type=float, default=0.1, help="stochastic depth [default: %(default)s]")


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("run")
    run.add_argument("-o", "--output", required=True, metavar="FOLDER", help="for encoder, card, losses and checkpoint")
    run.add_argument("--overwrite", action="store_true", help="begin anew where an earlier run left its folder")
    run.add_argument("--name", default=None, help="of the encoder, for its card")
    run.add_argument("--data_licence", default="not stated", help="licence of the images, for the card")
    run.add_argument("-device", choices=("cuda", "cpu", "mps"), default=None, help="[default: the best there is]")
    run.add_argument("--no_amp", dest="amp", action="store_false", help="no mixed precision on CUDA")
    run.add_argument(
        "--workers", type=not_negative_int, default=2, help="processes that read images [default: %(default)s]"
    )
    run.add_argument("--seed", type=not_negative_int, default=0, help="[default: %(default)s]")


def _magnification(text: str) -> float:
    value = float(text)
    if not 1 / 64 <= value <= 64:
        raise argparse.ArgumentTypeError(f"{value:g} is not between 1/64 and 64")
    return value
