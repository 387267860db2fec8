"""The command lines of `hrmedseg export` and `hrmedseg predict-onnx`. Imports nothing heavy."""

from __future__ import annotations

import argparse

from nnunet_hrmedseg.argument_types import positive_int

__all__ = ["WEIGHTS", "add_export_arguments", "add_predict_onnx_arguments"]

WEIGHTS = ("float32", "float16", "int8")
"""How the weights of an ONNX file are stored; computed is in float32."""


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL_FOLDER",
        help="TRAINER__PLANS__CONFIGURATION, below nnUNet_results; or one on the hub, hf://OWNER/NAME/DatasetNNN_Name/...",
    )
    parser.add_argument(
        "-f", "--folds", nargs="+", type=_fold, default=None, metavar="FOLD", help="[default: all that are trained]"
    )
    parser.add_argument(
        "-chk", "--checkpoint", default="checkpoint_final.pth", metavar="FILE", help="[default: %(default)s]"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an export that is there")
    onnx = parser.add_argument_group("for prediction without torch and nnU-Net")
    onnx.add_argument("--onnx", default=None, metavar="FOLDER", help="write an ONNX file for each fold, and model.json")
    onnx.add_argument(
        "--weights", choices=WEIGHTS, default=None, help="how they are stored, for smaller files [default: float32]"
    )
    share = parser.add_argument_group("for others who have this package")
    share.add_argument("--share", default=None, metavar="FOLDER_OR_ZIP", help="write a model folder to pass on")
    share.add_argument(
        "--to-hub",
        default=None,
        metavar="OWNER/NAME",
        help="Upload the same to this repository on the Hugging Face Hub; a new repository is private.",
    )
    share.add_argument("--licence", default=None, metavar="TEXT", help="that the model is passed on under")


def add_predict_onnx_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-i",
        "--input",
        nargs="+",
        required=True,
        metavar="INPUT",
        help="a folder of images named as for nnU-Net (CASE_0000.png, ...), or image files",
    )
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="for the label maps")
    parser.add_argument("-m", "--model", required=True, metavar="FOLDER", help="what hrmedseg export --onnx wrote")
    parser.add_argument(
        "-f", "--folds", nargs="+", type=_fold, default=None, metavar="FOLD", help="[default: all that are there]"
    )
    parser.add_argument("--disable_tta", action="store_true", help="no mirroring: faster, a little less accurate")
    parser.add_argument("--save_probabilities", action="store_true", help="as .npz beside each label map")
    parser.add_argument(
        "--threads", type=positive_int, default=None, metavar="N", help="of the network [default: all cores]"
    )


def _fold(text: str) -> str:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no fold: 0, 1, ... or all")
    return text if text == "all" else str(int(text))
