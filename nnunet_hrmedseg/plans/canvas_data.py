"""The canvas data of a plan: is it whole and up to date, and if not, make it: once, whoever asks at the same time.

Canvas data is nnU-Net's usual folder of preprocessed cases, `nnUNet_preprocessed/<data set>/<data_identifier>`, with
a record beside the cases that says of which raw files it was made. Only a folder whose record and files agree is taken
for complete: a new one is built under another name, gets its record last and is then renamed into place, so that
nothing which a killed process leaves behind can pass for it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from filelock import FileLock, Timeout
from nnunetv2.configuration import default_num_processes
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_hrmedseg import __version__
from nnunet_hrmedseg.errors import HRMedSegError, some
from nnunet_hrmedseg.files import read_json
from nnunet_hrmedseg.plans.preprocessor import HRMedSegPreprocessor
from nnunet_hrmedseg.plans.raw_cases import RawCase, find_raw_cases, preprocess_cases

__all__ = ["CanvasDataStatus", "canvas_data_status", "ensure_canvas_data"]

# nnU-Net tells the format of a data folder by the endings of all files in it, but does not look into sub-folders
RECORD = Path("canvas_data", "record.json")


@dataclass(frozen=True)
class CanvasDataStatus:
    """What is known of a folder of canvas data; `reason` says it in words."""

    state: Literal["complete", "missing", "incomplete", "stale"]
    reason: str


def ensure_canvas_data(
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    *,
    raw: str | os.PathLike | None,
    preprocessed: str | os.PathLike,
    dataset_name: str | None = None,
    num_processes: int = default_num_processes,
    preprocessor: DefaultPreprocessor | None = None,
    log: Callable[[str], Any] = print,
    force: bool = False,
) -> Path:
    """Makes sure that the canvas data of a configuration is there, whole and up to date. Returns its folder.

    Any number of processes may call this at the same time: one preprocesses under a lock, the others wait for it. The
    lock ends with the process that holds it, however that ends. A failure leaves what was there before as it was.

    Also brings `gt_segmentations` (the labels at original size, which nnU-Net's validation compares with) up to date.

    Args:
        plans: plans dict whose `configuration` is an HRMedSeg one (see `hrmedseg_plans`).
        configuration: its name.
        dataset_json: the data set's dataset.json.
        raw: nnU-Net's folder nnUNet_raw; None where it is not set. Not needed when the canvas data is complete.
        preprocessed: nnU-Net's folder nnUNet_preprocessed.
        dataset_name: such as Dataset001_Name; default is the plan's.
        num_processes: worker processes, at most one per CPU and case.
        preprocessor: default is `HRMedSegPreprocessor`, silent.
        log: takes lines of text.
        force: preprocess even if complete data is there.

    Raises:
        HRMedSegError: data must be made but the raw data is not there; a case is wrong (named); a worker died.
    """
    dataset_name = dataset_name or plans["dataset_name"]
    plans_manager = PlansManager(plans)
    folder = Path(preprocessed, dataset_name, plans_manager.get_configuration(configuration).data_identifier)
    raw_folder = None if raw is None else Path(raw, dataset_name)

    cases = find_raw_cases(raw_folder, dataset_json)
    status = canvas_data_status(folder, dataset_json, cases)
    if force or status.state != "complete":
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f"{folder.name}.lock"), log):
            _tidy_up_after_killed_process(folder)
            cases = find_raw_cases(raw_folder, dataset_json)
            status = canvas_data_status(folder, dataset_json, cases)
            if force or status.state != "complete":
                if cases is None:
                    raise HRMedSegError(_no_raw_data(folder, status, raw_folder, dataset_name))
                log(f"Resizing {len(cases)} cases to the canvas ({status.reason}). Data folder: {folder}")
                with _new_folder_in_place_of(folder) as new_folder:
                    raw_files = _raw_files(cases)
                    preprocess_cases(
                        cases,
                        new_folder,
                        preprocessor or HRMedSegPreprocessor(verbose=False),
                        plans_manager,
                        configuration,
                        dataset_json,
                        num_processes,
                    )
                    _write_record(new_folder, folder.name, dataset_json, raw_files)
    _update_ground_truth(cases, folder.parent / "gt_segmentations", dataset_json["file_ending"], log)
    return folder


# ---- what is there ---------------------------------------------------------------------------------------------------


def canvas_data_status(
    folder: Path, dataset_json: dict[str, Any], cases: dict[str, RawCase] | None
) -> CanvasDataStatus:
    """Says whether `folder` holds complete canvas data, made of these raw cases as they are now.

    Args:
        folder: the data folder; its name is the plan's `data_identifier`.
        dataset_json: the data set's dataset.json, whose labels the sampled class locations depend on.
        cases: from `find_raw_cases`; None where the raw data is out of reach, and is then not compared with.
    """
    if not folder.is_dir():
        return CanvasDataStatus("missing", "there is no canvas data yet")
    record = _read_record(folder)
    if record is None:
        return CanvasDataStatus("incomplete", "the canvas data has no record that it was finished")
    present = {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}
    lost = [name for name, size in record["files"].items() if present.get(name) != size]
    if lost:
        return CanvasDataStatus("incomplete", f"files of the canvas data are missing or damaged: {some(lost)}")
    if record["data_identifier"] != folder.name:
        return CanvasDataStatus("stale", f"the canvas data was made as {record['data_identifier']}")
    if record["labels"] != _labels(dataset_json):
        return CanvasDataStatus("stale", "the labels in dataset.json have changed")
    if cases is not None:
        was, now = record["raw"], _raw_files(cases)
        for what, names in (
            ("added", now.keys() - was.keys()),
            ("removed", was.keys() - now.keys()),
            ("changed", {name for name in now.keys() & was.keys() if now[name] != was[name]}),
        ):
            if names:
                return CanvasDataStatus("stale", f"raw cases were {what}: {some(sorted(names))}")
    return CanvasDataStatus("complete", "the canvas data is complete")


def _raw_files(cases: dict[str, RawCase]) -> dict[str, list[list]]:
    """Case -> [file name, size in bytes, time of change in ns] of each of its files; the folder may move."""
    return {name: [_file_state(file) for file in (*case.images, case.label)] for name, case in cases.items()}


def _file_state(file: str) -> list:
    try:
        stat = os.stat(file)
    except FileNotFoundError:
        return [os.path.basename(file), None, None]
    return [os.path.basename(file), stat.st_size, stat.st_mtime_ns]


def _labels(dataset_json: dict[str, Any]) -> dict[str, Any]:
    labels = dataset_json["labels"]
    values = [list(value) if isinstance(value, (list, tuple)) else value for value in labels.values()]
    return {"values": values, "ignore": labels.get("ignore")}


def _write_record(new_folder: Path, data_identifier: str, dataset_json: dict, raw_files: dict) -> None:
    record = {
        "nnunet_hrmedseg": __version__,
        "data_identifier": data_identifier,
        "labels": _labels(dataset_json),
        "raw": raw_files,
        "files": {entry.name: entry.stat().st_size for entry in os.scandir(new_folder) if entry.is_file()},
    }
    file = new_folder / RECORD
    file.parent.mkdir()
    file.write_text(json.dumps(record, indent=1))


def _read_record(folder: Path) -> dict[str, Any] | None:
    try:
        record = read_json(folder / RECORD)
    except (OSError, ValueError):
        return None
    needed = {"data_identifier": str, "labels": dict, "raw": dict, "files": dict}
    whole = isinstance(record, dict) and all(isinstance(record.get(name), kind) for name, kind in needed.items())
    return record if whole else None


# ---- once, and all or nothing ----------------------------------------------------------------------------------------


@contextmanager
def _locked(lock_file: Path, log: Callable[[str], Any]) -> Iterator[None]:
    lock = FileLock(str(lock_file))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log(f"Waiting for another process that is making this canvas data (it holds {lock_file}).")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _replaced(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.replaced")


@contextmanager
def _new_folder_in_place_of(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` when the block ends well, and disappears when it does not."""
    # a name of its own: a worker that outlives its killed parent for a moment must not write among our files
    new_folder = folder.with_name(f"{folder.name}.incomplete-{uuid4().hex[:8]}")
    new_folder.mkdir()
    try:
        yield new_folder
        if folder.exists():
            os.rename(folder, _replaced(folder))
        os.rename(new_folder, folder)
    finally:
        shutil.rmtree(new_folder, ignore_errors=True)
        _put_back_or_remove_replaced(folder)


def _tidy_up_after_killed_process(folder: Path) -> None:
    for leftover in folder.parent.glob(f"{folder.name}.incomplete*"):
        shutil.rmtree(leftover, ignore_errors=True)
    _put_back_or_remove_replaced(folder)


def _put_back_or_remove_replaced(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(_replaced(folder), ignore_errors=True)
    elif _replaced(folder).exists():
        os.rename(_replaced(folder), folder)


# ---- labels at original size -----------------------------------------------------------------------------------------


def _update_ground_truth(
    cases: dict[str, RawCase] | None, target: Path, file_ending: str, log: Callable[[str], Any]
) -> None:
    """As nnUNetv2_preprocess does it: copies the labels that are missing or newer. A kill leaves no half file."""
    if cases is None:
        if not target.is_dir():
            log(
                f"Warning: {target} is missing and nnUNet_raw has no labels to make it of. Training works without; the "
                f"validation at its end does not. Copy the folder from where the data was preprocessed."
            )
        return
    try:
        target.mkdir(exist_ok=True)
        for name, case in cases.items():
            copy = target / f"{name}{file_ending}"
            if copy.exists() and copy.stat().st_mtime_ns >= os.stat(case.label).st_mtime_ns:
                continue
            half = target / f".{copy.name}.{uuid4().hex[:8]}"
            try:
                shutil.copy2(case.label, half)
                os.replace(half, copy)
            finally:
                with suppress(FileNotFoundError):
                    half.unlink()
    except OSError as error:
        log(f"Warning: could not bring {target} up to date ({error}); the validation after training needs it.")


# ---- words -----------------------------------------------------------------------------------------------------------


def _no_raw_data(folder: Path, status: CanvasDataStatus, raw_folder: Path | None, dataset_name: str) -> str:
    where = "the environment variable nnUNet_raw is not set" if raw_folder is None else f"{raw_folder} has none"
    number = int(dataset_name[7:10])
    return (
        f"The data of {dataset_name} must be resized to the canvas ({status.reason} in {folder}), but there are no raw "
        f"images to do it with: {where}. Either\n"
        f"  - copy the raw data back to nnUNet_raw/{dataset_name} and start the same command again: training makes the "
        f"canvas data itself; or\n"
        f"  - make it where the raw data is, with\n"
        f"        nnUNetv2_plan_and_preprocess -d {number} -c 2d -pl nnUNetPlannerHRMedSeg\n"
        f"    or, if that was planned before, with\n"
        f"        nnUNetv2_preprocess -d {number} -c 2d -plans_name nnUNetHRMedSegPlans\n"
        f"    and copy the folders {folder.name} and gt_segmentations to {folder.parent}"
    )
