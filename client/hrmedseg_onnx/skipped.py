"""Names of the files in a user's folders that a command does not use. Imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from hrmedseg_onnx.errors import format_names
from hrmedseg_onnx.file_names import safe_path_str

__all__ = [
    "OF_NNUNET",
    "SHOWN",
    "describe_skipped",
    "find_unused",
    "is_hidden",
]

SHOWN = 10
"""Maximum number of names in a message; the others are counted."""
OF_NNUNET = (
    *("dataset.json", "plans.json", "dataset_fingerprint.json", "predict_from_raw_data_args.json", "summary.json"),
    *("postprocessing.json", "postprocessing.pkl", "splits_final.json"),
)
"""Files that nnU-Net itself writes beside images and predictions."""


def is_hidden(name: str) -> bool:
    """Return whether a file is hidden, whatever its ending: macOS writes `._a.png` beside `a.png` on other disks."""
    return name.startswith(".")


def find_unused(folder: Path, used: Iterable[Path | str], known: Sequence[str] = ()) -> list[str]:
    """Return the sorted names of entries of a folder that are neither used nor known; folders end in a slash.

    Args:
        folder: the folder to list.
        used: paths of used files, in this folder or elsewhere.
        known: names, or ends of names, of files to leave out.
    """
    files = set(map(os.path.realpath, used))
    there = [entry for entry in sorted(folder.iterdir()) if os.path.realpath(entry) not in files]
    others = [entry for entry in there if not entry.name.endswith(tuple(known))]
    return [safe_path_str(entry.name) + "/" * entry.is_dir() for entry in others]


def describe_skipped(folder: Path, names: Sequence[str]) -> list[str]:
    """Return a list with a sentence on skipped files, or an empty list if there are none."""
    return [f"Skipped in {folder}: {format_names(names, SHOWN)}."] if names else []
