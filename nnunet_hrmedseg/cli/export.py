"""`hrmedseg export`."""

from __future__ import annotations

import argparse

from nnunet_hrmedseg.cli.argument_types import fold

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "write a trained model as ONNX files, or as a clean folder or zip to share"
DESCRIPTION = (
    "Write a trained model as ONNX files for prediction without torch and nnU-Net, or as a folder or zip to "
    "share, without names of cases and paths. Required: MODEL_FOLDER, and --onnx, --share or both."
)
WEIGHTS = ("float32", "float16", "int8")
"""How the weights of an ONNX file are stored; computed is in float32."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL_FOLDER",
        help="folder of a trained model: TRAINER__PLANS__CONFIGURATION, below nnUNet_results; or one on the hub, "
        "hf://OWNER/NAME/DatasetNNN_Name/...",
    )
    parser.add_argument(
        "-f",
        "--folds",
        nargs="+",
        type=fold,
        default=None,
        metavar="FOLD",
        help="folds to export: 0, 1, ... or all [default: every trained fold]",
    )
    parser.add_argument(
        "-chk",
        "--checkpoint",
        default="checkpoint_final.pth",
        metavar="FILE",
        help="name of the checkpoint file in each fold [default: %(default)s]",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier export [default: refuse to, and change nothing]"
    )
    onnx = parser.add_argument_group("for prediction without torch and nnU-Net")
    onnx.add_argument(
        "--onnx", default=None, metavar="FOLDER", help="folder to write an ONNX file for each fold to, and model.json"
    )
    onnx.add_argument(
        "--weights",
        choices=WEIGHTS,
        default=None,
        help="number format in which the ONNX files store weights, for smaller files [default: float32]",
    )
    share = parser.add_argument_group("for others who have this package")
    share.add_argument(
        "--share", default=None, metavar="FOLDER_OR_ZIP", help="new folder, or new .zip file, to write the model to"
    )
    share.add_argument(
        "--to-hub",
        default=None,
        metavar="OWNER/NAME",
        help="repository on the Hugging Face Hub to upload the model to; a new repository is private",
    )
    share.add_argument(
        "--licence",
        default=None,
        metavar="TEXT",
        help="licence that the shared weights are under: a name, or a whole text [default: not stated]",
    )


def run(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.deployment.export import export

    return export(args)
