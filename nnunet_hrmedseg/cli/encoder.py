"""`hrmedseg encoder`."""

from __future__ import annotations

import argparse

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "import the published SAM-distilled encoder"
DESCRIPTION = (
    "Turn the encoder that HRMedSeg's authors publish into an encoder file that training starts from. Required: "
    "the sub-command import, its file, and -o."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
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


def run(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.encoders.encoder_commands import encoder

    return encoder(args)
