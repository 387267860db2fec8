"""The command lines of `hrmedseg export` and `hrmedseg predict-onnx`. Imports nothing heavy."""

from __future__ import annotations

import argparse

from nnunet_hrmedseg.cli.argument_types import fold, positive_int

__all__ = ["WEIGHTS", "add_export_arguments", "add_predict_onnx_arguments"]

WEIGHTS = ("float32", "float16", "int8")
"""How the weights of an ONNX file are stored; computed is in float32."""


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
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


def add_predict_onnx_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-i",
        "--input",
        nargs="+",
        required=True,
        metavar="INPUT",
        help="folder of images named as for nnU-Net (CASE_0000.png, ...), or image files",
    )
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="folder to write the label maps to")
    parser.add_argument(
        "-m", "--model", required=True, metavar="FOLDER", help="folder that hrmedseg export --onnx wrote"
    )
    parser.add_argument(
        "-f",
        "--folds",
        nargs="+",
        type=fold,
        default=None,
        metavar="FOLD",
        help="folds whose outputs are averaged [default: every fold in the model's folder]",
    )
    parser.add_argument(
        "--disable_tta",
        action="store_true",
        help="predict without mirroring: up to four times as fast, slightly less accurate [default: with mirroring]",
    )
    parser.add_argument(
        "--save_probabilities",
        action="store_true",
        help="write the probabilities of each case as well, as .npz beside its label map [default: label maps alone]",
    )
    parser.add_argument(
        "--threads",
        type=positive_int,
        default=None,
        metavar="N",
        help="number of CPU threads that the network uses [default: one for each core]",
    )
