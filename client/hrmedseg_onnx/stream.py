"""Prediction of images whose paths arrive one a line, as another program writes them, with one loaded model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path

from hrmedseg_onnx.cases import Case
from hrmedseg_onnx.errors import DataError, HRMedSegError
from hrmedseg_onnx.files import make_output_dir
from hrmedseg_onnx.json_values import is_list, is_text
from hrmedseg_onnx.model import OnnxModel
from hrmedseg_onnx.predict import check_not_overwriting, find_inputs, format_of_files, label_map_of, try_case

__all__ = ["FAILED", "predict_stream"]

FAILED = "FAILED: "
"""Beginning of the answer for an image that could not be predicted."""


def predict_stream(
    model: OnnxModel,
    lines: Iterable[str],
    output: str | PathLike,
    *,
    answer: Callable[[str], None],
    save_probabilities: bool = False,
    dicom_seg: bool = False,
) -> tuple[int, int]:
    """Predict one image for each line, and answer each line with one line before the next is read.

    Args:
        model: the model that predicts all images.
        lines: each is the path of an image file, or a JSON list with the files of its channels, named as for nnU-Net.
            Empty lines have no answer.
        output: folder for the label maps.
        answer: receives the path of the label map, or `FAILED` and the reason.
        save_probabilities: also write `CASE.npz`.
        dicom_seg: the images are DICOM, and so are the label maps.

    Returns:
        Number of predictions and of failures.

    Raises:
        SetupError: label maps cannot be written.
    """
    output = make_output_dir(Path(output))
    images: dict[Path, tuple[Path, ...]] = {}  # of the label maps that were written
    predicted = failed = 0
    for line in lines:
        line = line.rstrip("\r\n").removeprefix("\ufeff")  # editors on Windows begin files with this mark
        if not line.strip():
            continue
        try:
            case = _case(line, model, output, images, dicom_seg)
        except (HRMedSegError, OSError) as error:
            result: Path | str = str(error)
        else:
            result = try_case(model, case, output, save_probabilities=save_probabilities, dicom_seg=dicom_seg)
        if isinstance(result, Path):
            predicted += 1
            images[result] = case.files
            answer(str(result))
        else:
            failed += 1
            answer(FAILED + " ".join(result.split()))
    return predicted, failed


def _case(line: str, model: OnnxModel, output: Path, images: dict[Path, tuple[Path, ...]], dicom_seg: bool) -> Case:
    """Return the case of a line.

    Raises:
        HRMedSegError: there is no such image, or its label map would replace an image or that of another image.
    """
    sidecar = format_of_files(model.sidecar, dicom_seg)
    files = _files(line)
    folders = [str(file) for file in files if file.is_dir()]
    if folders:
        raise DataError(f"{folders[0]} is a folder. Give the path of an image file.")
    cases, _ = find_inputs(files, sidecar, dicom_seg=dicom_seg)
    if len(cases) != 1:
        raise DataError(
            f"{len(files)} files are not the {len(sidecar.channels)} channels of one image, whose names end in _0000, "
            f"_0001 and so on. Give each image on a line of its own."
        )
    (case,) = cases
    label_map = label_map_of(case, output, sidecar)
    if label_map not in images:
        check_not_overwriting(cases, output, sidecar)
    elif images[label_map] != case.files:
        raise DataError(
            f"{label_map} is already the label map of {images[label_map][0]}, which has the same name. Rename one of "
            f"the images."
        )
    return case


def _files(line: str) -> list[Path]:
    if line.startswith("["):  # or a file name that begins with it
        try:
            names = json.loads(line)
        except (ValueError, RecursionError):
            names = None
        if names and is_list(names, is_text):
            return [Path(name) for name in names]
    return [Path(line)]
