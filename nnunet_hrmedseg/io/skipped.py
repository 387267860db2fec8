"""Naming the files in a user's folders that a command does not use. Imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from nnunet_hrmedseg.errors import format_names
from nnunet_hrmedseg.io.file_names import safe_path_str

__all__ = [
    "OF_NNUNET",
    "SHOWN",
    "describe_skipped",
    "find_unused",
    "is_hidden",
]

SHOWN = 10
"""Names in a sentence; the rest is counted."""
OF_NNUNET = (
    *("dataset.json", "plans.json", "dataset_fingerprint.json", "predict_from_raw_data_args.json", "summary.json"),
    *("postprocessing.json", "postprocessing.pkl", "splits_final.json"),
)
"""What nnU-Net itself writes beside images and predictions."""


def is_hidden(name: str) -> bool:
    """Return whether a file is hidden, whatever its ending: macOS writes `._a.png` beside `a.png` on other disks."""
    return name.startswith(".")


def find_unused(folder: Path, used: Iterable[Path | str], known: Sequence[str] = ()) -> list[str]:
    """Return the names of what is in a folder, but neither in `used` nor in `known`, in order; folders with a slash.

    Args:
        used: paths of files, in this folder or elsewhere.
        known: names, or ends of names, of files that need not be named.
    """
    files = set(map(os.path.realpath, used))
    there = [entry for entry in sorted(folder.iterdir()) if os.path.realpath(entry) not in files]
    others = [entry for entry in there if not entry.name.endswith(tuple(known))]
    return [safe_path_str(entry.name) + "/" * entry.is_dir() for entry in others]


def describe_skipped(folder: Path, names: Sequence[str]) -> list[str]:
    """Return a sentence that names what is skipped in a folder; an empty list where there are no names."""
    return [f"Skipped in {folder}: {format_names(names, SHOWN)}."] if names else []
