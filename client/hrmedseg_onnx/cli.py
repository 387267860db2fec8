"""The command `hrmedseg-onnx`; `hrmedseg predict-onnx` has the same options."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrmedseg_onnx import __version__
from hrmedseg_onnx.errors import HRMedSegError
from hrmedseg_onnx.file_names import safe_path_str
from hrmedseg_onnx.files import check_output_dir, disk_remedy, is_disk_error
from hrmedseg_onnx.providers import PROVIDERS

if TYPE_CHECKING:
    from hrmedseg_onnx.model import OnnxModel

__all__ = ["DESCRIPTION", "ON_INTERRUPTION", "add_arguments", "check_arguments", "main", "run"]

DESCRIPTION = (
    "Predict images with the ONNX files of hrmedseg export --onnx, as nnUNetv2_predict does, and write a label map for "
    "each case. Needs numpy, onnxruntime, pillow and tifffile, for volumes SimpleITK or nibabel, and for DICOM pydicom "
    "and highdicom, but neither torch nor nnU-Net. Required: -i (or --stream), -o and -m."
)
ON_INTERRUPTION = "Finished label maps are kept."
INTERRUPTED, CLOSED_OUTPUT = 130, 141  # exit status after SIGINT and SIGPIPE, as shells report it
STANDARD_INPUT = "-"
INTERVAL = 2.0


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
    check_arguments(args)
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
    parser.set_defaults(usage_error=parser.error)
    files = parser.add_argument_group("images, label maps and model")
    inputs = files.add_mutually_exclusive_group(required=True)
    inputs.add_argument(
        "-i",
        "--input",
        nargs="+",
        metavar="INPUT",
        help="folder of images named as for nnU-Net (CASE_0000.png, ...), or of gray or RGB photos with any names; "
        "or image files; or - for --stream",
    )
    inputs.add_argument(
        "--stream",
        action="store_const",
        const=[STANDARD_INPUT],
        dest="input",
        help="read paths of image files from standard input, one a line, and print for each the path of its label map, "
        "or FAILED and the reason, as soon as it is known; ends with the input [default: the images of -i]",
    )
    files.add_argument("-o", "--output", required=True, metavar="FOLDER", help="folder to write the label maps to")
    files.add_argument(
        "-m", "--model", required=True, metavar="FOLDER", help="folder that hrmedseg export --onnx wrote"
    )
    files.add_argument(
        "--dicom_seg",
        action="store_true",
        help="read the DICOM images in the inputs, whatever their names, and write label maps as DICOM Segmentation "
        "objects (SEG) that refer to them [default: label maps of the format that the model was trained with]",
    )
    files.add_argument(
        "--save_probabilities",
        action="store_true",
        help="also write the probabilities of each case, as .npz beside its label map [default: label maps only]",
    )

    prediction = parser.add_argument_group("prediction")
    prediction.add_argument(
        "-f",
        "--folds",
        nargs="+",
        type=_fold,
        default=None,
        metavar="FOLD",
        help="folds whose outputs are averaged [default: every fold in the model's folder]",
    )
    prediction.add_argument(
        "--disable_tta",
        action="store_true",
        help="predict without mirroring: up to four times as fast, slightly less accurate [default: with mirroring]",
    )
    prediction.add_argument(
        "--provider",
        choices=PROVIDERS,
        default="cpu",
        help="execution provider of onnxruntime that computes the network; others than cpu may need another "
        "package of onnxruntime, which a message names [default: cpu]",
    )
    prediction.add_argument(
        "--threads",
        type=_positive_int,
        default=None,
        metavar="N",
        help="number of CPU threads that the network uses [default: one for each core]",
    )

    watching = parser.add_argument_group("watching a folder")
    watching.add_argument(
        "--watch",
        action="store_true",
        help="predict the images of the input folder that have no newer label map, and then each new or changed one, "
        "until ctrl-C [default: predict all images, and end]",
    )
    watching.add_argument(
        "--interval",
        type=_positive_float,
        default=None,
        metavar="SECONDS",
        help="time between two looks at the folder of --watch; a file is read once it has not changed for this long "
        f"[default: {INTERVAL:g}]",
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Check which options are given together; wrong ones end the process with exit status 2."""
    if STANDARD_INPUT in args.input and len(args.input) > 1:
        args.usage_error("-i -: standard input cannot be combined with files or folders")
    if args.watch and (len(args.input) > 1 or args.input == [STANDARD_INPUT] or Path(args.input[0]).is_file()):
        args.usage_error("--watch needs a single folder as -i, not files, several folders or standard input")
    if args.interval is not None and not args.watch:
        args.usage_error("--interval is for --watch")


def run(args: argparse.Namespace, model: Path) -> int:
    """Predict as the options ask for, and print the progress.

    Args:
        args: of a parser with `add_arguments`, as `check_arguments` accepts them.
        model: local folder of the exported model.

    Returns:
        0, or 1 if a case could not be predicted.

    Raises:
        HRMedSegError: see `predict_files`, `FolderWatch` and `predict_stream`.
        KeyboardInterrupt: the user has ended --watch.
    """
    if args.watch:
        return _watch(args, _loaded(args, model))
    if args.input == [STANDARD_INPUT]:
        return _stream(args, _loaded(args, model))
    from hrmedseg_onnx.predict import predict_files

    summary = predict_files(
        model=model,
        inputs=args.input,
        output=args.output,
        **_model_options(args),
        save_probabilities=args.save_probabilities,
        dicom_seg=args.dicom_seg,
        log=_print,
        log_failure=_print_failure,
    )
    _print(f"{len(summary.label_maps)} of {summary.count} predicted, in {args.output}")
    if summary.failures:
        _print_failure(f"{len(summary.failures)} failed: {', '.join(summary.failures)}")
    return 1 if summary.failures else 0


def _watch(args: argparse.Namespace, model: OnnxModel) -> int:
    from hrmedseg_onnx.watch import FolderWatch

    options = {"save_probabilities": args.save_probabilities, "dicom_seg": args.dicom_seg}
    watch = FolderWatch(model, args.input[0], args.output, **options, log=_print, log_failure=_print_failure)
    interval = args.interval or INTERVAL
    _print(f"Watching {args.input[0]} every {interval:g} s for images to predict. Stop with ctrl-C.")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as services are stopped
    try:
        watch.run(interval)
    finally:
        signal.signal(signal.SIGTERM, before)
        _print(f"{watch.predicted} predicted, {watch.failed} failed, in {args.output}")


def _stream(args: argparse.Namespace, model: OnnxModel) -> int:
    from hrmedseg_onnx.stream import predict_stream

    predicted, failed = predict_stream(
        model,
        _lines_of_standard_input(),
        args.output,
        answer=_answer,
        save_probabilities=args.save_probabilities,
        dicom_seg=args.dicom_seg,
    )
    _print_failure(f"{predicted} of {predicted + failed} predicted, in {args.output}")
    return 1 if failed else 0


def _loaded(args: argparse.Namespace, folder: Path) -> OnnxModel:
    from hrmedseg_onnx.model import OnnxModel

    check_output_dir(Path(args.output))
    return OnnxModel(folder, **_model_options(args))


def _model_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "folds": args.folds,
        "mirror": not args.disable_tta,
        "threads": args.threads,
        "provider": args.provider,
    }


def _lines_of_standard_input() -> Iterator[str]:
    """Yield lines as they arrive, with the bytes of file names as they are."""
    for line in sys.stdin.buffer:
        yield os.fsdecode(line)


def _answer(text: str) -> None:
    """Print a line at once, with the bytes of file names as they are."""
    sys.stdout.buffer.write(os.fsencode(f"{text}\n"))
    sys.stdout.buffer.flush()


def _print(message: str) -> None:
    print(safe_path_str(message), flush=True)  # names of files may have bytes that are not text


def _print_failure(message: str) -> None:
    print(safe_path_str(message), file=sys.stderr, flush=True)


def _fold(text: str) -> str:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor all")
    return text if text == "all" else str(int(text))


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
