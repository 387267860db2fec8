"""Prediction of files: one label map for each case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path

import numpy as np

from hrmedseg_onnx.cases import Case, find_cases, skipped_inputs
from hrmedseg_onnx.dicom_cases import DICOM_ENDING, find_dicom_cases
from hrmedseg_onnx.dicom_seg import class_names
from hrmedseg_onnx.errors import DataError, HRMedSegError, SetupError, format_names
from hrmedseg_onnx.files import (
    atomic_path_same_name,
    check_output_dir,
    is_disk_error,
    make_output_dir,
    reporting_write_errors,
)
from hrmedseg_onnx.image_files import (
    DICOM_READER,
    PICTURE_READER,
    files_read,
    files_written,
    read_image,
    readable_endings,
    write_label_map,
)
from hrmedseg_onnx.model import OnnxModel
from hrmedseg_onnx.sidecar import Sidecar

__all__ = [
    "PredictionSummary",
    "check_not_overwriting",
    "find_inputs",
    "format_of_files",
    "holds_all_channels",
    "ignore_message",
    "label_map_of",
    "predict_case",
    "predict_files",
    "try_case",
]


@dataclass
class PredictionSummary:
    """Result of `predict_files`.

    Attributes:
        label_maps: case -> its label map.
        failures: case -> why it could not be predicted.
    """

    label_maps: dict[str, Path] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of cases."""
        return len(self.label_maps) + len(self.failures)


def ignore_message(message: str) -> None:
    """Do nothing with a message."""


def predict_files(
    *,
    model: OnnxModel | str | PathLike,
    inputs: Sequence[str | PathLike],
    output: str | PathLike,
    folds: Sequence[str] | None = None,
    mirror: bool = True,
    threads: int | None = None,
    provider: str = "cpu",
    save_probabilities: bool = False,
    dicom_seg: bool = False,
    log: Callable[[str], None] = ignore_message,
    log_failure: Callable[[str], None] = ignore_message,
) -> PredictionSummary:
    """Predict cases one after the other. A case that cannot be predicted does not stop the others.

    Args:
        model: a model, or the folder that `hrmedseg export --onnx` wrote.
        inputs: folders of images named as for nnU-Net, and image files.
        output: folder for the label maps.
        folds: folds whose outputs are averaged; None: every fold. Only for a folder as `model`, as are `mirror`,
            `threads` and `provider`.
        mirror: average over mirrored images, as nnU-Net does.
        threads: number of CPU threads; None: one for each core.
        provider: execution provider of onnxruntime, as in `OnnxModel`.
        save_probabilities: also write `CASE.npz`.
        dicom_seg: read DICOM images of any name, and write label maps as DICOM SEG that refer to them, `CASE.dcm`.
        log: receives one line for each predicted case, and the names of skipped files.
        log_failure: receives one line for each case that failed.

    Returns:
        Label maps and failures.

    Raises:
        CheckpointError: the model cannot be loaded.
        DataError: there are no images.
        SetupError: onnxruntime or the provider is missing, the output cannot be written, or an input would be
            overwritten.
    """
    paths, output = [Path(path) for path in inputs], Path(output)
    check_output_dir(output)
    if not isinstance(model, OnnxModel):
        model = OnnxModel(model, folds=folds, mirror=mirror, threads=threads, provider=provider)
    sidecar = format_of_files(model.sidecar, dicom_seg)
    cases, skipped = find_inputs(paths, sidecar, dicom_seg=dicom_seg)
    check_not_overwriting(cases, output, sidecar)
    for sentence in skipped:
        log(sentence)
    make_output_dir(output)
    summary = PredictionSummary()
    for number, case in enumerate(cases, start=1):
        result = try_case(model, case, output, save_probabilities=save_probabilities, dicom_seg=dicom_seg)
        if isinstance(result, Path):
            summary.label_maps[case.name] = result
            log(f"{number}/{len(cases)} {result}")
        else:
            summary.failures[case.name] = result
            log_failure(f"{number}/{len(cases)} {case.name} FAILED: {result}")
    return summary


def format_of_files(sidecar: Sidecar, dicom_seg: bool) -> Sidecar:
    """Return the description of the model with the format of images and label maps, which is DICOM if `dicom_seg`."""
    return _for_dicom(sidecar) if dicom_seg else sidecar


def holds_all_channels(sidecar: Sidecar) -> bool:
    """Return whether one file can hold all channels of a picture: it is gray or RGB."""
    return sidecar.image_reader in (PICTURE_READER, DICOM_READER) and len(sidecar.channels) in (1, 3)


def find_inputs(paths: Sequence[Path], sidecar: Sidecar, *, dicom_seg: bool = False) -> tuple[list[Case], list[str]]:
    """Return the cases of folders and files, and sentences with the names of skipped files.

    Args:
        paths: folders and files.
        sidecar: of `format_of_files`.
        dicom_seg: the files are DICOM, whatever their names.

    Raises:
        DataError: see `find_cases` and `find_dicom_cases`.
        SetupError: a folder or file may not be read.
    """
    try:
        if dicom_seg:
            return find_dicom_cases(paths, channels=len(sidecar.channels))
        return _find_inputs(paths, sidecar)
    except PermissionError as error:
        raise SetupError(f"{error.filename} may not be read. Permit reading it, or give another input.") from error


def _find_inputs(paths: Sequence[Path], sidecar: Sidecar) -> tuple[list[Case], list[str]]:
    reader = sidecar.image_reader
    cases = find_cases(
        paths,
        sidecar.file_ending,
        channels=len(sidecar.channels),
        readable=readable_endings(reader),
        plain_names=holds_all_channels(sidecar),
    )
    used = {path for case in cases for file in case.files for path in files_read(file, reader)}
    return cases, skipped_inputs(paths, used)


def try_case(
    model: OnnxModel, case: Case, output: Path, *, save_probabilities: bool = False, dicom_seg: bool = False
) -> Path | str:
    """Predict one case as `predict_case` does, so that others can be predicted if it fails.

    Returns:
        The file of the label map, or the reason why there is none.

    Raises:
        SetupError: the output cannot be written, which would affect all other cases as well.
    """
    try:
        return predict_case(model, case, output, save_probabilities=save_probabilities, dicom_seg=dicom_seg)
    except Exception as error:
        if isinstance(error, OSError) and is_disk_error(error):
            with reporting_write_errors(label_map_of(case, output, format_of_files(model.sidecar, dicom_seg))):
                raise
        return f"{error}" if isinstance(error, HRMedSegError) else f"{error} ({type(error).__name__})"


def predict_case(
    model: OnnxModel, case: Case, output: Path, *, save_probabilities: bool = False, dicom_seg: bool = False
) -> Path:
    """Predict one case.

    Args:
        model: an exported model.
        case: a case of `find_cases`.
        output: folder for the label map.
        save_probabilities: also write `CASE.npz`.
        dicom_seg: the files are DICOM, and so is the label map.

    Returns:
        The file of the label map.

    Raises:
        DataError: the files cannot be read, or do not have the channels that the model was trained with.
    """
    if case.fault:
        raise DataError(case.fault)
    sidecar = format_of_files(model.sidecar, dicom_seg)
    image = read_image(case.files, sidecar.image_reader, sidecar.channels)
    labels, probabilities = model.predict(image.data, with_probabilities=save_probabilities)
    file = label_map_of(case, output, sidecar)
    write_label_map(labels, file, sidecar.image_reader, image.geometry, class_names(sidecar.labels))
    if probabilities is not None:
        with atomic_path_same_name(output / f"{case.name}.npz") as temporary:
            np.savez_compressed(temporary, probabilities=probabilities)
    return file


def _for_dicom(sidecar: Sidecar) -> Sidecar:
    """Return the description of the model with DICOM as the format of images and label maps.

    Raises:
        DataError: the model was trained with volumes, whose axes may have another direction than in DICOM files.
    """
    if sidecar.image_reader not in (PICTURE_READER, DICOM_READER):
        raise DataError(
            f"--dicom_seg is for models that were trained with DICOM files or pictures; this one was trained with "
            f"{sidecar.file_ending} files, read by {sidecar.image_reader}. Convert the DICOM files to "
            f"{sidecar.file_ending}, and leave --dicom_seg out."
        )
    return replace(sidecar, image_reader=DICOM_READER, file_ending=DICOM_ENDING)


def check_not_overwriting(cases: Sequence[Case], output: Path, sidecar: Sidecar) -> None:
    """Check that no label map replaces an image: images without a channel number have the name of their label map.

    Raises:
        SetupError: a label map would replace an input, or a file beside the inputs, which may be an image as well.
    """
    reader = sidecar.image_reader
    files = [file for case in cases for file in case.files]
    inputs = {path.resolve() for file in files for path in files_read(file, reader)}
    written = [path for case in cases for path in files_written(label_map_of(case, output, sidecar), reader)]
    hit = [str(file) for file in written if file.resolve() in inputs]
    if hit:
        raise SetupError(f"{format_names(hit)} would be overwritten, which are inputs. Give -o another folder.")
    if output.resolve() not in {file.parent.resolve() for file in files}:
        return
    hit = [str(file) for file in written if file.exists()]
    if hit:
        raise SetupError(
            f"{format_names(hit)} would be overwritten, and may be images, because the inputs are in the same folder. "
            f"Remove earlier label maps, or give -o another folder."
        )


def label_map_of(case: Case, output: Path, sidecar: Sidecar) -> Path:
    """Return the file of a case's label map."""
    return output / f"{case.name}{sidecar.file_ending}"
