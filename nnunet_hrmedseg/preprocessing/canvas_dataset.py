"""Check that the canvas data of a plan is complete and up to date, and create it if not.

Canvas data is nnU-Net's usual folder of preprocessed cases, `nnUNet_preprocessed/<dataset>/<data_identifier>`, with
a record that lists the raw files it was made from. A folder is complete only if its record and its files agree: a new
one is written under another name, gets its record last and is then renamed, so that the remains of a killed process are
never mistaken for complete data. Any number of processes can request the data at the same time; one creates it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from nnunetv2.configuration import default_num_processes
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_hrmedseg import __version__
from nnunet_hrmedseg.errors import DataError, SetupError, format_names
from nnunet_hrmedseg.io.access import is_writable, may_replace, owner_of, reporting_denied_access, share_as_parent
from nnunet_hrmedseg.io.files import read_json, remove_directory, reporting_write_errors, write_atomically
from nnunet_hrmedseg.io.locks import lock
from nnunet_hrmedseg.io.raw_cases import RawCase, find_raw_cases, refuse_label_names
from nnunet_hrmedseg.plans.splits import SPLITS, cases_in_splits, missing_cases
from nnunet_hrmedseg.preprocessing.case_workers import preprocess_cases
from nnunet_hrmedseg.preprocessing.ground_truth import update_ground_truth
from nnunet_hrmedseg.preprocessing.in_use import describe_use
from nnunet_hrmedseg.preprocessing.raw_files import find_changes

__all__ = ["CanvasDataStatus", "canvas_data_status", "ensure_canvas_data"]

# nnU-Net determines the format of a data folder from the endings of all files in it, but ignores sub-folders
RECORD = Path("canvas_data", "record.json")
STAGES = "incomplete", "replaced"  # in names of folders that exist only while data is replaced


@dataclass(frozen=True)
class CanvasDataStatus:
    """State of a folder of canvas data; `reason` describes it for messages.

    Attributes:
        usable: whether at most the raw cases differ, so that the data can be trained with as it is.
        missing: cases of the data that are no longer in the raw data.
        differing: cases whose raw files were added or changed since the data was made.
        touched: records of cases whose raw files have the same content but new modification times.
    """

    state: Literal["complete", "missing", "incomplete", "stale"]
    reason: str
    usable: bool = False
    missing: tuple[str, ...] = ()
    differing: tuple[str, ...] = ()
    touched: dict[str, list[list]] = field(default_factory=dict)


def ensure_canvas_data(
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    *,
    preprocessor: DefaultPreprocessor,
    raw: str | os.PathLike | None,
    preprocessed: str | os.PathLike,
    dataset_name: str | None = None,
    num_processes: int = default_num_processes,
    log: Callable[[str], Any] = print,
    force: bool = False,
    on_ready: Callable[[Path], Any] | None = None,
) -> Path:
    """Make sure that the canvas data of a configuration is complete and up to date, and return its folder.

    Any number of processes may call this at the same time: one preprocesses under a lock, the others wait for it. The
    lock is released when the process that holds it ends, for whatever reason. A failure leaves existing data unchanged.

    Data is never replaced while a training uses it (see `in_use.mark_in_use`), nor by data that lacks cases named in
    `splits_final.json`: a training then uses the existing data, if it is complete, and logs a warning.

    It also updates `gt_segmentations` (the labels at original size, which nnU-Net's validation compares with).

    Args:
        plans: plans dict whose `configuration` is an HRMedSeg one (see `hrmedseg_plans`).
        configuration: name of the configuration.
        dataset_json: dataset.json of the dataset.
        preprocessor: the preprocessor, usually `HRMedSegPreprocessor`.
        raw: nnU-Net's folder nnUNet_raw; None if it is not set. It is not needed if the canvas data is complete.
        preprocessed: nnU-Net's folder nnUNet_preprocessed.
        dataset_name: name such as Dataset001_Name (default: the name in the plans).
        num_processes: number of worker processes, at most one per CPU and case.
        log: function that takes lines of text.
        force: preprocess even if complete data exists.
        on_ready: called with the folder while no other process can replace it; a training calls `mark_in_use` there.

    Raises:
        DataError: data must be made, but the raw data is not there, a training uses the data, or cases that
            splits_final.json names would get lost; a case is wrong (the message names it).
        SetupError: the folder cannot be written to; a file cannot be read; a worker process died.
    """
    dataset_name = dataset_name or plans["dataset_name"]
    plans_manager = PlansManager(plans)
    folder = Path(preprocessed, dataset_name, plans_manager.get_configuration(configuration).data_identifier)
    raw_folder = None if raw is None else Path(raw, dataset_name)

    place = _behind_link(folder)
    with reporting_denied_access(), _locked(place, log) as unwritable:
        if unwritable is None:
            _tidy_up_after_killed_process(place)
        cases = find_raw_cases(raw_folder, dataset_json)
        status = canvas_data_status(folder, dataset_json, cases)
        conflict = None
        if force or status.state != "complete":
            conflict = _needed_by_folds(folder, status, raw_folder)
            if conflict is None and unwritable is not None:
                raise SetupError(_unwritable(place, status, unwritable))
            if cases is None:
                raise DataError(_no_raw_data(folder, status, raw_folder, dataset_name, plans, configuration))
            conflict = conflict or describe_use(folder, "" if status.state == "complete" else status.reason)
            if conflict is not None and (force or not status.usable):
                raise DataError(conflict)
        if conflict is not None:
            log(f"Warning: this training uses the existing canvas data. {conflict}")
        elif cases is not None and (force or status.state != "complete"):
            refuse_label_names(cases)
            log(f"Resizing {len(cases)} cases to the canvas ({status.reason}). Data folder: {folder}")
            with (
                reporting_write_errors(place, "and run this command again."),
                _new_folder_in_place_of(place) as new_folder,
            ):
                raw_files = preprocess_cases(
                    cases,
                    new_folder,
                    preprocessor,
                    plans_manager,
                    configuration,
                    dataset_json,
                    num_processes,
                )
                _write_record(new_folder, folder.name, dataset_json, raw_files)
        elif status.touched:
            _save_new_times(folder, status.touched)
        if cases is not None and conflict is not None:
            # validation must compare with the labels that the data was made from
            cases = {name: case for name, case in cases.items() if name not in status.differing}
        update_ground_truth(cases, folder.parent / "gt_segmentations", dataset_json["file_ending"], log)
        if on_ready is not None:
            on_ready(folder)
    return folder


# ---- status ---------------------------------------------------------------------------------------------------


def canvas_data_status(
    folder: Path, dataset_json: dict[str, Any], cases: dict[str, RawCase] | None
) -> CanvasDataStatus:
    """Check whether `folder` contains complete canvas data, made from the current raw cases.

    Args:
        folder: the data folder; its name is the plan's `data_identifier`.
        dataset_json: dataset.json of the dataset; the sampled class locations depend on its labels.
        cases: result of `find_raw_cases`; None if the raw data is not available, which is then not compared.
    """
    if not folder.is_dir():
        return CanvasDataStatus("missing", "there is no canvas data yet")
    record = _read_record(folder)
    if record is None:
        return CanvasDataStatus("incomplete", "the canvas data has no record that it was finished")
    missing = () if cases is None else tuple(sorted(record["raw"].keys() - cases.keys()))
    present = {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}
    lost = [name for name, size in record["files"].items() if present.get(name) != size]
    if lost:
        reason = f"files of the canvas data are missing or damaged: {format_names(lost)}"
        return CanvasDataStatus("incomplete", reason, missing=missing)
    if record["data_identifier"] != folder.name:
        reason = f"the canvas data was made as {record['data_identifier']}"
        return CanvasDataStatus("stale", reason, missing=missing)
    if record["labels"] != _labels(dataset_json):
        return CanvasDataStatus("stale", "the labels in dataset.json have changed", missing=missing)
    if cases is None:
        return CanvasDataStatus("complete", "the canvas data is complete", usable=True)
    found, touched = find_changes(record["raw"], cases)
    reasons = [f"{what}: {format_names(names)}" for what, names in found._asdict().items() if names]
    if reasons:
        reason = f"raw cases were {'; '.join(reasons)}"
        differing = (*found.added, *found.changed)
        return CanvasDataStatus("stale", reason, usable=True, missing=missing, differing=differing)
    return CanvasDataStatus("complete", "the canvas data is complete", usable=True, touched=touched)


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
    share_as_parent(file.parent)
    file.write_text(json.dumps(record, indent=1))


def _read_record(folder: Path) -> dict[str, Any] | None:
    try:
        record = read_json(folder / RECORD)
    except PermissionError:  # of another user: not data that was not finished
        raise
    except (OSError, ValueError):
        return None
    needed = {"data_identifier": str, "labels": dict, "raw": dict, "files": dict}
    whole = isinstance(record, dict) and all(isinstance(record.get(name), kind) for name, kind in needed.items())
    if not whole or not all(isinstance(files, list) for files in record["raw"].values()):
        return None
    return record


def _save_new_times(folder: Path, touched: dict[str, list[list]]) -> None:
    """Save the new modification times of unchanged raw files; if that fails, their content is compared every time."""
    record = _read_record(folder)
    if record is not None:
        record["raw"].update(touched)
        with suppress(OSError):
            write_atomically(folder / RECORD, json.dumps(record, indent=1).encode())


def _needed_by_folds(folder: Path, status: CanvasDataStatus, raw_folder: Path | None) -> str | None:
    """Return a message on cases that folds need and that new data would lack; None if there are none."""
    splits_file = folder.parent / SPLITS
    needed = cases_in_splits(splits_file).intersection(status.missing) if status.missing else None
    return missing_cases(needed, splits_file, str(raw_folder)) if needed else None


# ---- atomic replacement ----------------------------------------------------------------------------------------------


@contextmanager
def _locked(place: Path, log: Callable[[str], Any]) -> Iterator[OSError | None]:
    """Hold the lock of a data folder. Yield the error if the folder cannot be replaced, otherwise None."""
    file = place.with_name(f"{place.name}.lock")
    held, fault = None, None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        held = lock(
            file,
            on_wait=lambda: log(f"Waiting for another process that is creating this canvas data (it holds {file})."),
        )
        if not may_replace(place):
            kept = place if is_writable(place.parent) else place.parent
            raise PermissionError(errno.EACCES, f"{kept} belongs to the user {owner_of(kept)}")
    except OSError as error:
        fault = error
    try:
        yield fault
    finally:
        if held is not None:
            held.release()


@contextmanager
def _new_folder_in_place_of(place: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `place` if the block succeeds, and is removed if it fails.

    Raises:
        DataError: a training that has no write access, and therefore did not wait for the lock, uses the data.
    """
    # unique names: a worker that briefly outlives its killed parent must not write into the new folder, and a replaced
    # one that belongs to another user may not be removable
    new_folder, old_folder = (place.with_name(f"{place.name}.{what}-{uuid4().hex[:8]}") for what in STAGES)
    new_folder.mkdir()
    share_as_parent(new_folder)
    try:
        yield new_folder
        if place.exists():
            if conflict := describe_use(place):
                raise DataError(conflict)
            os.rename(place, old_folder)
        os.rename(new_folder, place)
    finally:
        shutil.rmtree(new_folder, ignore_errors=True)
        _put_back_or_remove_replaced(place)


def _tidy_up_after_killed_process(place: Path) -> None:
    for leftover in place.parent.glob(f"{escape(place.name)}.{STAGES[0]}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    _put_back_or_remove_replaced(place)


def _put_back_or_remove_replaced(place: Path) -> None:
    leftovers = place.parent.glob(f"{escape(place.name)}.{STAGES[1]}*")
    replaced = sorted(leftovers, key=lambda path: path.lstat().st_ctime)
    if replaced and not place.exists():
        os.rename(replaced.pop(), place)  # the one that was replaced last
    for leftover in replaced:
        remove_directory(leftover)


def _behind_link(folder: Path) -> Path:
    """Return the place of a data folder, which can be a link to another disk."""
    place = folder.resolve()
    if os.path.islink(folder) and not place.parent.is_dir():
        raise SetupError(f"{folder} is a link to {place}, which is not there. Mount its disk, or remove the link.")
    return place


# ---- messages --------------------------------------------------------------------------------------------------------


def _no_raw_data(
    folder: Path,
    status: CanvasDataStatus,
    raw_folder: Path | None,
    dataset_name: str,
    plans: dict[str, Any],
    configuration: str,
) -> str:
    where = "the environment variable nnUNet_raw is not set" if raw_folder is None else f"{raw_folder} has none"
    number, name = int(dataset_name[7:10]), plans["plans_name"]
    return (
        f"The data of {dataset_name} must be resized to the canvas ({status.reason} in {folder}), but there are no raw "
        f"images: {where}. Either\n"
        f"  - copy the raw data back to nnUNet_raw/{dataset_name} and run the same command again: training creates the "
        f"canvas data; or\n"
        f"  - create it where the raw data is: for plans of nnUNetPlannerHRMedSeg, with the same {name}.json and\n"
        f"        nnUNetv2_preprocess -d {number} -c {configuration} -plans_name {name}\n"
        f"    or, for other plans, with\n"
        f"        nnUNetv2_plan_and_preprocess -d {number} -c 2d -pl nnUNetPlannerHRMedSeg\n"
        f"    and copy the folders {folder.name} and gt_segmentations to {folder.parent}"
    )


def _unwritable(place: Path, status: CanvasDataStatus, error: OSError) -> str:
    reason, instead = status.reason, "unset nnUNet_raw, to train with the existing canvas data"
    if status.state == "complete":
        reason = "this command creates it again, although it is complete"
        instead = "train with the existing canvas data, which needs no write access"
    return (
        f"The canvas data must be created ({reason}), but {place.parent} is not writable ({error}). Either\n"
        f"  - get write access to that folder; or\n"
        f"  - copy it to a folder of your own, and set nnUNet_preprocessed to the parent folder of the copy"
        + (f"; or\n  - {instead}" if status.usable else "")
    )
