"""Update `gt_segmentations`, the labels at original size, with which nnU-Net's validation compares predictions."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnunet_hrmedseg.io.files import atomic_path
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
    try:
        target.mkdir(exist_ok=True)
        for name, case in cases.items():
            copy = target / f"{name}{file_ending}"
            if _same(Path(case.label), copy):
                continue
            with atomic_path(copy, concurrent=True) as temporary:
                shutil.copy2(case.label, temporary)
    except OSError as error:
        log(f"Warning: {target} could not be updated ({error}); the validation after training needs it.")


def _same(label: Path, copy: Path) -> bool:
    try:
        was = os.stat(copy)
    except FileNotFoundError:
        return False
    now = os.stat(label)
    if was.st_size != now.st_size:
        return False
    # copy2 keeps the time, so that only files that were copied in another way are read
    return was.st_mtime_ns == now.st_mtime_ns or filecmp.cmp(label, copy, shallow=False)
