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

__all__ = ["PredictionSummary", "predict_case", "predict_files"]


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


def _ignore(message: str) -> None:
    pass


def predict_files(
    *,
    model: OnnxModel | str | PathLike,
    inputs: Sequence[str | PathLike],
    output: str | PathLike,
    folds: Sequence[str] | None = None,
    mirror: bool = True,
    threads: int | None = None,
    save_probabilities: bool = False,
    dicom_seg: bool = False,
    log: Callable[[str], None] = _ignore,
    log_failure: Callable[[str], None] = _ignore,
) -> PredictionSummary:
    """Predict cases one after the other. A case that cannot be predicted does not stop the others.

    Args:
        model: a model, or the folder that `hrmedseg export --onnx` wrote.
        inputs: folders of images named as for nnU-Net, and image files.
        output: folder for the label maps.
        folds: folds whose outputs are averaged; None: every fold. Only for a folder as `model`, as are `mirror` and
            `threads`.
        mirror: average over mirrored images, as nnU-Net does.
        threads: number of CPU threads; None: one for each core.
        save_probabilities: also write `CASE.npz`.
        dicom_seg: read DICOM images of any name, and write label maps as DICOM SEG that refer to them, `CASE.dcm`.
        log: receives one line for each predicted case, and the names of skipped files.
        log_failure: receives one line for each case that failed.

    Returns:
        Label maps and failures.

    Raises:
        CheckpointError: the model cannot be loaded.
        DataError: there are no images.
        SetupError: onnxruntime is missing, the output cannot be written, or an input would be overwritten.
    """
    paths, output = [Path(path) for path in inputs], Path(output)
    check_output_dir(output)
    if not isinstance(model, OnnxModel):
        model = OnnxModel(model, folds=folds, mirror=mirror, threads=threads)
    sidecar = model.sidecar
    if dicom_seg:
        sidecar = _for_dicom(sidecar)
        cases, skipped = find_dicom_cases(paths, channels=len(sidecar.channels))
    else:
        cases = find_cases(
            paths,
            sidecar.file_ending,
            channels=len(sidecar.channels),
            readable=readable_endings(sidecar.image_reader),
        )
        used = {path for case in cases for file in case.files for path in files_read(file, sidecar.image_reader)}
        skipped = skipped_inputs(paths, used)
    _check_not_overwriting(cases, output, sidecar)
    for sentence in skipped:
        log(sentence)
    make_output_dir(output)
    summary = PredictionSummary()
    for number, case in enumerate(cases, start=1):
        try:
            file = predict_case(model, case, output, save_probabilities=save_probabilities, dicom_seg=dicom_seg)
        except Exception as error:  # other cases are still predicted
            if isinstance(error, OSError) and is_disk_error(error):  # would affect all others as well
                with reporting_write_errors(_label_map(case, output, sidecar)):
                    raise
            kind = "" if isinstance(error, HRMedSegError) else f" ({type(error).__name__})"
            summary.failures[case.name] = f"{error}{kind}"
            log_failure(f"{number}/{len(cases)} {case.name} FAILED: {error}{kind}")
        else:
            summary.label_maps[case.name] = file
            log(f"{number}/{len(cases)} {file}")
    return summary


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
    sidecar = _for_dicom(model.sidecar) if dicom_seg else model.sidecar
    image = read_image(case.files, sidecar.image_reader, sidecar.channels)
    labels, probabilities = model.predict(image.data, with_probabilities=save_probabilities)
    file = _label_map(case, output, sidecar)
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
            f"--dicom-seg is for models that were trained with DICOM files or pictures; this one was trained with "
            f"{sidecar.file_ending} files, read by {sidecar.image_reader}. Convert the DICOM files to "
            f"{sidecar.file_ending}, and leave --dicom-seg out."
        )
    return replace(sidecar, image_reader=DICOM_READER, file_ending=DICOM_ENDING)


def _check_not_overwriting(cases: Sequence[Case], output: Path, sidecar: Sidecar) -> None:
    """Check that no label map has the path of an input: images without a channel number have the same name."""
    reader = sidecar.image_reader
    inputs = {path.resolve() for case in cases for file in case.files for path in files_read(file, reader)}
    written = [path for case in cases for path in files_written(_label_map(case, output, sidecar), reader)]
    hit = [str(file) for file in written if file.resolve() in inputs]
    if hit:
        raise SetupError(f"{format_names(hit)} would be overwritten, which are inputs. Give -o another folder.")


def _label_map(case: Case, output: Path, sidecar: Sidecar) -> Path:
    return output / f"{case.name}{sidecar.file_ending}"
