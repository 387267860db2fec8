"""Prediction of the images of a folder as they arrive, with one loaded model."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import NoReturn

from hrmedseg_onnx.cases import Case, cases_of_folder
from hrmedseg_onnx.dicom_cases import dicom_cases_of_folder, is_dicom_image
from hrmedseg_onnx.errors import DataError, SetupError
from hrmedseg_onnx.files import check_output_dir, make_output_dir
from hrmedseg_onnx.image_files import files_read, readable_endings
from hrmedseg_onnx.model import OnnxModel
from hrmedseg_onnx.predict import (
    check_not_overwriting,
    format_of_files,
    holds_all_channels,
    ignore_message,
    label_map_of,
    try_case,
)
from hrmedseg_onnx.skipped import OF_NNUNET, describe_skipped, is_hidden

__all__ = ["FolderWatch"]

Stamp = tuple[object, ...]
"""What changes whenever a case changes: its fault, and path, size and modification time of its files."""


class FolderWatch:
    """A folder whose images are predicted as they arrive.

    A case is predicted once its files have had the same sizes and times at two polls in succession, so that no file is
    read while it is written, and again if a file changes. At its first sight, a case whose label map is newer than its
    files is skipped. A case that fails is tried again only if it changes.

    Args:
        model: the model that predicts all cases.
        folder: the folder to watch, named as for `predict_files`.
        output: another folder, for the label maps.
        save_probabilities: also write `CASE.npz`.
        dicom_seg: read DICOM images of any name, and write DICOM SEG, as `predict_files` does.
        log: receives one line for each predicted case, and the names of skipped files.
        log_failure: receives one line for each failure.

    Attributes:
        predicted: number of predictions.
        failed: number of failures.

    Raises:
        DataError: the folder does not exist.
        SetupError: label maps cannot be written to `output`, or would be watched.

    Examples:
        >>> from hrmedseg_onnx import FolderWatch, OnnxModel
        >>> watch = FolderWatch(OnnxModel("mine_onnx"), "incoming", "masks", log=print)  # doctest: +SKIP
        >>> watch.run(interval=5)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: OnnxModel,
        folder: str | PathLike,
        output: str | PathLike,
        *,
        save_probabilities: bool = False,
        dicom_seg: bool = False,
        log: Callable[[str], None] = ignore_message,
        log_failure: Callable[[str], None] = ignore_message,
    ) -> None:
        self.model, self.folder, self.output = model, Path(folder), Path(output)
        self.options = {"save_probabilities": save_probabilities, "dicom_seg": dicom_seg}
        self.sidecar = format_of_files(model.sidecar, dicom_seg)
        self.log, self.log_failure = log, log_failure
        self.predicted = self.failed = 0
        self._waiting: dict[str, Stamp] = {}  # case -> stamp at the previous poll
        self._done: dict[str, Stamp] = {}  # case -> stamp at its last attempt
        self._dicom_images: dict[Path, tuple[Stamp, bool]] = {}
        self._not_used: set[str] = set()  # at the previous poll
        self._named: set[str] = set()  # in a message on skipped files
        self._unreadable = False
        if not self.folder.is_dir():
            raise DataError(f"{folder} is not a folder. Give a folder to watch.")
        place, watched = self.output.resolve(), self.folder.resolve()
        if place == watched or (dicom_seg and watched in place.parents):
            raise SetupError(
                f"Label maps in {output} would be watched like images of {folder}. Give -o another folder."
            )
        check_output_dir(self.output)

    def run(self, interval: float = 2.0, sleep: Callable[[float], None] = time.sleep) -> NoReturn:
        """Predict until an exception, such as the KeyboardInterrupt of ctrl-C, ends it.

        Args:
            interval: seconds between polls.
            sleep: waits for this time.

        Raises:
            SetupError: label maps cannot be written.
        """
        while True:
            self.poll()
            sleep(interval)

    def poll(self) -> None:
        """Look at the folder once, and predict the cases that are complete.

        Raises:
            SetupError: label maps cannot be written.
        """
        try:
            cases, not_used = self._list()
        except OSError as error:  # such as a network drive that is away for a while
            if not self._unreadable:
                self.log_failure(f"{self.folder} cannot be read ({error.strerror}). Trying again.")
            self._unreadable = True
            return
        self._unreadable = False
        self._name_skipped(not_used)
        before, self._waiting = self._waiting, {}
        complete = []
        for case in cases:
            stamp = self._stamp(case)
            if stamp is not None:
                self._waiting[case.name] = stamp
                if stamp == before.get(case.name) and stamp != self._done.get(case.name):
                    complete.append(case)
        self._done = {name: stamp for name, stamp in self._done.items() if name in self._waiting}
        first_seen = [case for case in complete if case.name not in self._done]
        current = {case.name for case in first_seen if self._has_newer_label_map(case)}
        if current:
            self.log(f"Not predicted: {len(current)} of {len(cases)}, which have a label map newer than the image.")
        for case in complete:
            self._done[case.name] = self._waiting[case.name]
            if case.name not in current:
                self._predict(case)

    def _list(self) -> tuple[list[Case], list[str]]:
        """Return the cases, and the names of visible files that are not used."""
        channels = len(self.sidecar.channels)
        if self.options["dicom_seg"]:
            known, self._dicom_images = self._dicom_images, {}
            return dicom_cases_of_folder(
                self.folder, channels=channels, is_used=lambda file: self._is_dicom_image(file, known)
            )
        cases = cases_of_folder(
            self.folder,
            self.sidecar.file_ending,
            channels=channels,
            readable=readable_endings(self.sidecar.image_reader),
            plain_names=holds_all_channels(self.sidecar),
        )
        used = {file.name for case in cases for file in self._files(case)}
        with os.scandir(self.folder) as entries:
            files = sorted(entry.name for entry in entries if entry.is_file())
        return cases, [name for name in files if not (name in used or is_hidden(name) or name.endswith(OF_NNUNET))]

    def _is_dicom_image(self, file: Path, known: Mapping[Path, tuple[Stamp, bool]]) -> bool:
        """Return whether a file is a DICOM image, which is looked up in its header only if the file has changed."""
        try:
            stamp = _stamp_of_file(file)
            before, is_image = known.get(file, (None, False))
            self._dicom_images[file] = stamp, is_image if stamp == before else is_dicom_image(file)
        except OSError:  # removed in the meantime
            return False
        return self._dicom_images[file][1]

    def _name_skipped(self, not_used: list[str]) -> None:
        """Name each file that is not used once; one that is there for a single poll may be a temporary file."""
        skipped = [name for name in not_used if name in self._not_used and name not in self._named]
        self._not_used = set(not_used)
        self._named = (self._named & self._not_used) | set(skipped)
        for sentence in describe_skipped(self.folder, skipped):
            self.log(sentence)

    def _files(self, case: Case) -> list[Path]:
        return [path for file in case.files for path in files_read(file, self.sidecar.image_reader)]

    def _stamp(self, case: Case) -> Stamp | None:
        """Return the stamp of a case, or None if a file was removed in the meantime."""
        try:
            return (case.fault, *(_stamp_of_file(file) for file in self._files(case)))
        except OSError:
            return None

    def _has_newer_label_map(self, case: Case) -> bool:
        try:
            label_map = label_map_of(case, self.output, self.sidecar).stat()
            return not case.fault and all(label_map.st_mtime_ns > file.stat().st_mtime_ns for file in self._files(case))
        except OSError:
            return False

    def _predict(self, case: Case) -> None:
        make_output_dir(self.output)
        try:
            check_not_overwriting([case], self.output, self.sidecar)
        except SetupError as error:
            result: Path | str = str(error)
        else:
            result = try_case(self.model, case, self.output, **self.options)
        if isinstance(result, Path):
            self.predicted += 1
            self.log(str(result))
        else:
            self.failed += 1
            self.log_failure(f"{case.name} FAILED: {result}")


def _stamp_of_file(file: Path) -> Stamp:
    stat = file.stat()
    return str(file), stat.st_size, stat.st_mtime_ns
