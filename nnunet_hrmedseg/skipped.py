"""Naming the files in a user's folders that a command does not use. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from nnunet_hrmedseg.errors import some

__all__ = ["is_hidden", "not_used", "skipped_in"]

SHOWN = 10
OF_NNUNET = (
    *("dataset.json", "plans.json", "dataset_fingerprint.json", "predict_from_raw_data_args.json", "summary.json"),
    *("postprocessing.json", "postprocessing.pkl", "splits_final.json"),
)
"""What nnU-Net itself writes beside images and predictions."""


def is_hidden(name: str) -> bool:
    """Return whether a file is no image whatever its ending: macOS writes `._a.png` beside `a.png` on other disks."""
    return name.startswith(".")


def not_used(folder: Path, used: Collection[Path], known: Sequence[str] = ()) -> list[str]:
    """Return the names of what is in a folder, but not in `used`, nor one of `known`; folders with a slash.

    Args:
        used: paths of files, made from `folder` as it is given here.
        known: names, or ends of names, of files that need not be named.
    """
    files = set(used)
    there = [entry for entry in sorted(folder.iterdir()) if entry not in files]
    others = [entry for entry in there if not entry.name.endswith(tuple(known))]
    return [f"{entry.name}/" if entry.is_dir() else entry.name for entry in others]


def skipped_in(folder: Path, names: Sequence[str]) -> list[str]:
    """Return a sentence, or none where there are no names, on what of a folder is not used."""
    return [f"Skipped in {folder}: {some(names, SHOWN)}."] if names else []
