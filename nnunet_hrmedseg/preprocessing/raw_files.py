"""Check whether raw files are those that canvas data was made from.

Files with the recorded size and modification time are the same; others are compared by content. Copying a dataset gives
every file a new time, and a corrected label may have an older one (unzip, tar, `cp -p`, `rsync -t`), so a time never
means "newer".
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from nnunet_hrmedseg.io.files import file_sha256

if TYPE_CHECKING:
    from nnunet_hrmedseg.io.raw_cases import RawCase

__all__ = [
    "Changes",
    "file_states",
    "find_changes",
    "record_files",
]


class Changes(NamedTuple):
    """Names of the raw cases that differ from the recorded ones, sorted."""

    added: list[str]
    removed: list[str]
    changed: list[str]


def file_states(case: RawCase) -> list[list]:
    """Return [file name, size in bytes, time of change in ns] of each file of a case; the folder may move."""
    return [_state(file) for file in (*case.images, case.label)]


def record_files(case: RawCase, before: list[list]) -> list[list]:
    """Return the states of a case's files with their sha256, for the JSON record.

    Args:
        case: the raw case.
        before: the states before the case was preprocessed. A file that has changed since gets no sha256.
    """
    now = zip((*case.images, case.label), before, file_states(case), strict=True)
    return [[*was, file_sha256(file) if was == is_ else None] for file, was, is_ in now]


def find_changes(recorded: dict[str, Any], cases: dict[str, RawCase]) -> tuple[Changes, dict[str, list[list]]]:
    """Compare raw cases with the record of those that canvas data was made from.

    Returns:
        the changes; and new records of the cases whose files have new times but the same content, to be saved, so that
        the files are not read again.
    """
    now = {name: file_states(case) for name, case in cases.items()}
    changed, touched = [], {}
    for name in sorted(now.keys() & recorded.keys()):
        was = recorded[name]
        if len(was) != len(now[name]) or not all(isinstance(entry, list) and len(entry) >= 3 for entry in was):
            changed.append(name)
        elif [entry[:3] for entry in was] == now[name]:
            continue
        elif _same_content(was, now[name], cases[name]):
            touched[name] = [[*state, *entry[3:]] for entry, state in zip(was, now[name], strict=True)]
        else:
            changed.append(name)
    return Changes(sorted(now.keys() - recorded.keys()), sorted(recorded.keys() - now.keys()), changed), touched


def _same_content(was: list[list], now: list[list], case: RawCase) -> bool:
    if [entry[:2] for entry in was] != [state[:2] for state in now]:  # names and sizes
        return False
    return all(
        entry[2] == state[2] or (len(entry) > 3 and entry[3] is not None and entry[3] == file_sha256(file))
        for entry, state, file in zip(was, now, (*case.images, case.label), strict=True)
    )


def _state(file: str) -> list:
    try:
        stat = os.stat(file)
    except FileNotFoundError:
        return [os.path.basename(file), None, None]
    return [os.path.basename(file), stat.st_size, stat.st_mtime_ns]
