"""Update `gt_segmentations`, the labels at original size, with which nnU-Net's validation compares predictions."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from nnunet_hrmedseg.errors import format_names
from nnunet_hrmedseg.io.access import is_readable, share_as_parent
from nnunet_hrmedseg.io.files import atomic_path, is_denied, replace_directory
from nnunet_hrmedseg.io.raw_cases import RawCase

__all__ = ["update_ground_truth"]


def update_ground_truth(
    cases: dict[str, RawCase] | None, target: Path, file_ending: str, log: Callable[[str], Any]
) -> None:
    """Copy the labels that are missing or differ, whichever file is newer. A killed process leaves no partial file."""
    if cases is None:
        if not target.is_dir():
            log(
                f"Warning: {target} is missing, and nnUNet_raw has no labels to create it from. Training works without "
                f"it, but the validation after training does not. Copy the folder from where the data was preprocessed."
            )
        return
    labels = {f"{name}{file_ending}": Path(case.label) for name, case in cases.items()}
    outdated = {name: label for name, label in labels.items() if not _same(label, target / name)}
    try:
        if not target.is_dir():
            target.mkdir()
            share_as_parent(target)
        try:
            for name, label in outdated.items():
                with atomic_path(target / name, concurrent=True) as temporary:
                    _copy(label, temporary)
        except OSError as error:
            if not is_denied(error):
                raise
            _replace(target, outdated)
    except OSError as error:
        log(
            f"Warning: {len(outdated)} of {len(labels)} labels in {target} are missing or differ from the raw data, "
            f"and could not be updated ({error}): {format_names(list(outdated))}. The validation after training needs "
            f"these files. Get write access to that folder, or copy the files from labelsTr."
        )


def _same(label: Path, copy: Path) -> bool:
    try:
        was = os.stat(copy)
    except FileNotFoundError:
        return False
    now = os.stat(label)
    if was.st_size != now.st_size or not is_readable(copy):
        return False
    # copies keep the time, so that only files that were copied in another way are read
    return was.st_mtime_ns == now.st_mtime_ns or filecmp.cmp(label, copy, shallow=False)


def _copy(file: Path, place: Path) -> None:
    """Copy content and time, but no access rights: raw labels may be read-only, or readable by their owner alone."""
    shutil.copyfile(file, place)
    state = os.stat(file)
    os.utime(place, ns=(state.st_atime_ns, state.st_mtime_ns))


def _replace(target: Path, changes: Mapping[str, Path]) -> None:
    """Replace a folder whose files cannot be replaced, because it belongs to another user, by a changed copy."""
    new = target.with_name(f"{target.name}.incomplete-{uuid4().hex[:8]}")
    new.mkdir()
    share_as_parent(new)
    try:
        for name, file in {**{file.name: file for file in target.iterdir()}, **changes}.items():
            _copy(file, new / name)
        replace_directory(new, target)
    finally:
        shutil.rmtree(new, ignore_errors=True)
