"""Make cross-validation splits in which cases of one group (a patient, a video, a slide) stay together."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from nnunet_hrmedseg.datasets.pixels import composed, is_image_file, stem
from nnunet_hrmedseg.errors import DataError, PlanError, SetupError, format_names
from nnunet_hrmedseg.io.files import read_json

__all__ = ["check_planned_splits", "find_groups", "make_splits", "suspected_groups"]

NUMBERED = re.compile(r"^(?P<group>.*\d)[_\-. ]+[A-Za-z]*[_\-. ]*\d+$")
SHARE_OF_NUMBERED_NAMES = 0.5


def find_groups(cases: Sequence[str], rule: str) -> dict[str, str]:
    """Return the group of each case.

    Args:
        cases: names.
        rule: a CSV file with the columns case and group, or a regular expression whose first group (or whole match)
            is the group, such as `^(patient[0-9]+)_`.

    Raises:
        DataError: an unreadable file, or cases without a group.
        PlanError: an invalid regular expression.
    """
    file = Path(rule)
    if rule.lower().endswith((".csv", ".tsv", ".txt")) or file.is_file():
        groups = _read_csv(file)
    else:
        try:
            pattern = re.compile(rule)
        except re.error as error:
            raise PlanError(f"--groups {rule!r} is not a CSV file or a regular expression ({error}).") from error
        found = {case: pattern.search(case) for case in cases}
        groups = {case: m.group(1 if pattern.groups else 0) for case, m in found.items() if m and m.group(0)}
    missing = [case for case in cases if not groups.get(case)]
    if missing:
        others = [name for name in groups if name not in cases]
        named = f" It names other cases: {format_names(others)}." if others else ""
        raise DataError(f"--groups {rule!r} gives no group for {len(missing)} cases: {format_names(missing)}.{named}")
    if len({groups[case] for case in cases}) < 2:
        raise DataError(f"--groups {rule!r} puts all cases into one group. Validation needs at least two.")
    return {case: groups[case] for case in cases}


def _read_csv(file: Path) -> dict[str, str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The groups {file} cannot be read ({error}). Save them as CSV in UTF-8.") from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    rows = csv.DictReader(text.splitlines(), delimiter=delimiter)
    columns = {name.strip().lower(): name for name in rows.fieldnames or []}
    if "case" not in columns or "group" not in columns:
        raise DataError(f"{file} needs the columns case and group; it has {format_names(list(rows.fieldnames or []))}.")
    return {_case(row[columns["case"]] or ""): (row[columns["group"]] or "").strip() for row in rows}


def _case(text: str) -> str:
    """Return the case that a spreadsheet names, perhaps by the path of its image."""
    path = PurePosixPath(composed(text.strip().replace("\\", "/")))
    name = stem(Path(path.name)) if is_image_file(Path(path.name)) else path.name
    return "_".join((*path.parts[:-1], name))


def make_splits(groups: dict[str, str], folds: int = 5) -> list[dict[str, list[str]]]:
    """Return nnU-Net's splits_final.json, in which no group is in both training and validation. Deterministic."""
    sizes = Counter(groups.values())
    order = np.random.default_rng(12345).permutation(sorted(sizes)).tolist()  # nnU-Net's own seed
    fold_of: dict[str, int] = {}
    filled = [0] * min(folds, len(sizes))
    for group in sorted(order, key=lambda group: -sizes[group]):  # large groups first, each to the emptiest fold
        fold = filled.index(min(filled))
        fold_of[group] = fold
        filled[fold] += sizes[group]
    cases = sorted(groups)
    return [
        {
            "train": [case for case in cases if fold_of[groups[case]] != fold],
            "val": [case for case in cases if fold_of[groups[case]] == fold],
        }
        for fold in range(len(filled))
    ]


def check_planned_splits(splits: Sequence[dict[str, list[str]]], file: Path) -> None:
    """Check that nnU-Net's planner accepts splits for a dataset that was planned before.

    Args:
        splits: those of the new raw dataset.
        file: splits_final.json in nnUNet_preprocessed, if there is one. It may have further folds.

    Raises:
        SetupError: the folds differ.
    """
    if not file.is_file():
        return
    try:
        planned = [{part: set(fold[part]) for part in ("train", "val")} for fold in read_json(file)]
    except (OSError, ValueError, TypeError, KeyError):  # not a list of folds
        planned = []
    if planned[: len(splits)] != [{part: set(fold[part]) for part in ("train", "val")} for fold in splits]:
        raise SetupError(
            f"{file} is from an earlier planning and has other folds than --groups makes, with which nnU-Net's planner "
            f"stops. Delete this file, and train all folds again; or leave out --groups."
        )


def suspected_groups(cases: Sequence[str]) -> tuple[str, int] | None:
    """Look for names of several frames or slides of one patient: `patient03_frame012`.

    Returns:
        an example of a shared prefix and the number of prefixes; None if names do not look like that.
    """
    prefixes = Counter(m.group("group") for m in map(NUMBERED.match, cases) if m)
    shared = {prefix: count for prefix, count in prefixes.items() if count > 1}
    if len(shared) < 2 or sum(shared.values()) < SHARE_OF_NUMBERED_NAMES * len(cases):
        return None
    return max(shared, key=lambda prefix: shared[prefix]), len(shared)
