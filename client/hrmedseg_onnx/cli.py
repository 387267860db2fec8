"""The command `hrmedseg-onnx`; `hrmedseg predict-onnx` has the same options."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hrmedseg_onnx import __version__
from hrmedseg_onnx.errors import HRMedSegError
from hrmedseg_onnx.files import disk_remedy, is_disk_error

__all__ = ["DESCRIPTION", "ON_INTERRUPTION", "add_arguments", "main", "run"]

DESCRIPTION = (
    "Predict images with the ONNX files of hrmedseg export --onnx, as nnUNetv2_predict does. Needs numpy, onnxruntime, "
    "pillow and tifffile, for volumes SimpleITK or nibabel, and for DICOM pydicom and highdicom, but neither torch nor "
    "nnU-Net. Writes a label map for each case. Required: -i, -o and -m."
)
ON_INTERRUPTION = "Finished label maps are kept."
INTERRUPTED, CLOSED_OUTPUT = 130, 141  # exit status after SIGINT and SIGPIPE, as shells report it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        Exit status: 0 all cases predicted, 1 an error or a failed case, 2 wrong arguments, 130 interrupted by ctrl-C,
        141 the reader of the output has ended (`| head`).
    """
    parser = argparse.ArgumentParser(prog="hrmedseg-onnx", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"hrmedseg-onnx {__version__}")
    add_arguments(parser)
    args = parser.parse_args(arguments)
    try:
        status = run(args, Path(args.model))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_OUTPUT
    except HRMedSegError as error:
        message, status = str(error), 1
    except OSError as error:
        if not is_disk_error(error):
            raise
        message, status = f"{error}. {disk_remedy(error)}, or give another place.", 1
    except KeyboardInterrupt:
        message, status = f"interrupted. {ON_INTERRUPTION}", INTERRUPTED
    print(f"hrmedseg-onnx: {message}", file=sys.stderr)
    return status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all options of the command to a parser."""
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
        type=_fold,
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
        help="also write the probabilities of each case, as .npz beside its label map [default: label maps only]",
    )
    parser.add_argument(
        "--dicom-seg",
        action="store_true",
        help="read the DICOM images in the inputs, whatever their names, and write label maps as DICOM Segmentation "
        "objects (SEG) that refer to them [default: label maps of the format that the model was trained with]",
    )
    parser.add_argument(
        "--threads",
        type=_positive_int,
        default=None,
        metavar="N",
        help="number of CPU threads that the network uses [default: one for each core]",
    )


def run(args: argparse.Namespace, model: Path) -> int:
    """Predict as the options ask for, and print the progress.

    Args:
        args: of a parser with `add_arguments`.
        model: local folder of the exported model.

    Returns:
        0, or 1 if a case could not be predicted.

    Raises:
        HRMedSegError: see `predict_files`.
    """
    from hrmedseg_onnx.predict import predict_files

    summary = predict_files(
        model=model,
        inputs=args.input,
        output=args.output,
        folds=args.folds,
        mirror=not args.disable_tta,
        threads=args.threads,
        save_probabilities=args.save_probabilities,
        dicom_seg=args.dicom_seg,
        log=print,
        log_failure=_print_failure,
    )
    print(f"{len(summary.label_maps)} of {summary.count} predicted, in {args.output}")
    if summary.failures:
        print(f"{len(summary.failures)} failed: {', '.join(summary.failures)}", file=sys.stderr)
    return 1 if summary.failures else 0


def _print_failure(message: str) -> None:
    print(message, file=sys.stderr)


def _fold(text: str) -> str:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor all")
    return text if text == "all" else str(int(text))


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
