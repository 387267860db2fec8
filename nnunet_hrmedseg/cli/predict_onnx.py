"""`hrmedseg predict-onnx`."""

from __future__ import annotations

import argparse

from nnunet_hrmedseg.cli.argument_types import fold, positive_int

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "predict with exported ONNX files, where there is neither torch nor nnU-Net"
DESCRIPTION = (
    "Predict images with the ONNX files of hrmedseg export --onnx, as nnUNetv2_predict does, on the CPU. Needs "
    "numpy, onnxruntime, pillow and tifffile, and for volumes SimpleITK or nibabel, but neither torch nor nnU-"
    "Net. Writes a label map for each case. Required: -i, -o and -m."
)
ON_INTERRUPTION = "Finished label maps are kept."


def add_arguments(parser: argparse.ArgumentParser) -> None:
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


def run(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.deployment.onnx_predict import predict_onnx

    return predict_onnx(args)
