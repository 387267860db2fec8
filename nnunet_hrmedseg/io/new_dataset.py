"""Create an nnU-Net raw dataset: a free number and name, and a folder that is complete or does not exist."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from nnunet_hrmedseg.errors import PlanError, SetupError, format_names
from nnunet_hrmedseg.io.access import reporting_denied_access, share_as_parent
from nnunet_hrmedseg.io.files import replace_directory
from nnunet_hrmedseg.io.locks import lock_or_refuse, release_and_remove

__all__ = [
    "building_directory",
    "check_keeps_inputs",
    "free_dataset_folder",
    "split_dataset_name",
    "write_dataset_json",
]


def split_dataset_name(full_name: str) -> tuple[int, str]:
    """Return number and name of Dataset123_Name.

    Raises:
        PlanError: It is not the name of a dataset.
    """
    match = re.fullmatch(r"Dataset(\d{3})_(.+)", full_name)
    if not match:
        raise PlanError(
            f"{full_name!r:.200} is not the name of a dataset. Those of nnU-Net are like Dataset123_Nuclei."
        )
    return int(match[1]), match[2]


def free_dataset_folder(
    raw: Path, number: int, name: str, *, others: Iterable[Path] = (), overwrite: bool = False
) -> Path:
    """Return the folder of a new dataset, without creating it.

    Args:
        raw: nnUNet_raw.
        number: Of the dataset, 1 to 999.
        name: Of the dataset: letters, digits, - and _.
        others: Further folders in which the number must not be taken: nnUNet_preprocessed and nnUNet_results.
        overwrite: Whether a dataset of this number and name may be replaced.

    Raises:
        PlanError: The number or the name cannot be that of a dataset, or the number is taken.
        SetupError: The dataset exists already.
    """
    if not 1 <= number <= 999:
        raise PlanError(f"The number of a dataset must be 1 to 999, not {number}.")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise PlanError(f"{name!r:.200} is not a possible name of a dataset: use letters, digits, - and _.")
    folder = raw / f"Dataset{number:03d}_{name}"
    same_number = [path for place in (raw, *others) for path in sorted(place.glob(f"Dataset{number:03d}_*"))]
    taken = [str(path) for path in same_number if path != folder]
    if taken:
        raise PlanError(f"The number {number} is used by {format_names(taken)}. Choose another number.")
    if folder.exists() and not overwrite:
        raise SetupError(f"{folder} exists already. Choose another number, or replace it with --overwrite.")
    return folder


def check_keeps_inputs(output: Path, inputs: Iterable[Path]) -> None:
    """Check that an output folder, which is replaced as a whole, does not hold the inputs.

    Raises:
        PlanError: it is one of them, or holds one.
    """
    for place in inputs:
        if place.resolve().is_relative_to(output.resolve()):
            raise PlanError(
                f"The output {output} would replace the input {place}. Choose another one, or move the input."
            )


@contextmanager
def building_directory(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a new folder to write to; at the end it takes the place of `folder`.

    If anything fails, `folder` stays as it was, and the new folder is removed. If `folder` is a link, its target is
    replaced. Other commands are kept from building the same folder.

    Args:
        folder: the folder to be.
        overwrite: whether it may exist, and is replaced.

    Raises:
        SetupError: the folder exists or another command is building it, or it cannot be created or replaced.
    """
    folder = folder.resolve()
    with reporting_denied_access():
        if not folder.parent.is_dir():
            folder.parent.mkdir(parents=True)
    with _locked(folder):
        if os.path.lexists(folder) and not overwrite:
            raise SetupError(f"{folder} exists already: another command has written it in the meantime.")
        with _incomplete(folder) as incomplete:
            yield incomplete


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    file = folder.with_name(f"incomplete_{folder.name}.lock")
    held = lock_or_refuse(  # None: the file of another user
        file,
        f"Another command is writing {folder}: it holds {file}. Wait for it or end it, or choose another name.",
    )
    try:
        yield
    finally:
        if held is not None:
            release_and_remove(held)


@contextmanager
def _incomplete(folder: Path) -> Iterator[Path]:
    incomplete = folder.with_name(f"incomplete_{folder.name}")
    shutil.rmtree(incomplete, ignore_errors=True)
    if os.path.lexists(incomplete):  # of another user
        incomplete = folder.with_name(f"{incomplete.name}-{uuid4().hex[:8]}")
    with reporting_denied_access():
        incomplete.mkdir(parents=True)
    share_as_parent(incomplete)
    try:
        yield incomplete
        for below in incomplete.iterdir():
            if below.is_dir():
                share_as_parent(below)
        with reporting_denied_access():
            replace_directory(incomplete, folder)
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)


def write_dataset_json(
    folder: Path,
    *,
    channels: Sequence[str],
    labels: Mapping[str, object],
    cases: int,
    file_ending: str,
    **further: object,
) -> None:
    """Write the dataset.json of a raw dataset; `further` entries are added as they are."""
    content = {
        "channel_names": {str(index): channel for index, channel in enumerate(channels)},
        "labels": dict(labels),
        "numTraining": cases,
        "file_ending": file_ending,
        **further,
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
