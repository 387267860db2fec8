"""Mark canvas data as in use by a training, so that no process replaces it meanwhile.

A mark is a lock file beside the data: whoever may replace the data may write and read there, whichever user owns the
data itself. A training of a user without write access locks a file of the data instead, for which read access is
enough. The operating system frees both when the training ends, however it ends.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

from nnunet_hrmedseg.errors import format_names
from nnunet_hrmedseg.io.access import owner_of
from nnunet_hrmedseg.io.locks import LockHeld, is_locked, lock, lock_for_reading, release_and_remove

__all__ = ["describe_use", "mark_in_use", "marks_of"]


def mark_in_use(folder: Path, user: str, trainer: object, log: Callable[[str], Any] = print) -> None:
    """Prevent canvas data from being replaced as long as `trainer` and this process exist.

    Args:
        folder: the data folder.
        user: name of the training, for messages and for the name of the lock file.
        trainer: the object whose lifetime counts.
        log: function that takes a line of text, if the data cannot be marked.
    """
    place = folder.resolve()
    release: Callable[[], Any]
    try:
        held = lock(place.with_name(f"{place.name}.in_use.{user}.{uuid4().hex[:8]}.lock"))
        release = lambda: release_and_remove(held)  # noqa: E731
    except OSError:
        try:
            release = lock_for_reading(_file_of(place)).close
        except OSError as error:
            log(
                f"Warning: {folder} cannot be marked as in use by this training ({error}). Until this training has "
                f"ended, nobody should change the raw data or preprocess it again."
            )
            return
    weakref.finalize(trainer, _unmark, release, os.getpid())


def _unmark(release: Callable[[], Any], process: int) -> None:
    if process == os.getpid():  # not a forked worker of that process
        release()


def _file_of(place: Path) -> Path:
    """Return the file of canvas data that trainings without write access lock; it changes only with the whole data."""
    names = sorted(entry.name for entry in os.scandir(place) if entry.is_file())
    if not names:
        raise FileNotFoundError(f"{place} has no files")
    return place / names[0]


def marks_of(folder: Path) -> list[Path]:
    """Return the lock files of trainings that use the data, and of those that were killed."""
    place = folder.resolve()
    return sorted(place.parent.glob(f"{escape(place.name)}.in_use.*.lock"))


def describe_use(folder: Path, although: str = "") -> str | None:
    """Return a message on trainings that use the data, which prevents replacing it; None if there are none.

    Args:
        folder: the data folder.
        although: why it would be replaced.
    """
    users = _users(folder)
    if not users:
        return None
    return (
        f"{folder} is not replaced while a training uses it{although and f', although {although}'}. Wait until that "
        f"training has ended, or end it, and run this command again. In use by {format_names(users).rstrip('.')}."
    )


def _users(folder: Path) -> list[str]:
    """Return the trainings that use the data, and remove the lock files of those that were killed."""
    users = []
    for mark in marks_of(folder):
        name, *_ = mark.name.partition(".in_use.")[2].rsplit(".", 2)
        name += f" (of user {owner_of(mark)})"
        try:
            release_and_remove(lock(mark))
        except LockHeld as held:
            users.append(f"{name} {held}".strip())
        except OSError as error:
            locked = is_locked(mark)
            if locked is None:
                users.append(f"{name} (or not: {mark} cannot be opened, {error}; delete it then)")
            elif locked:
                users.append(name)
            else:
                with suppress(OSError):  # of another user, in a folder with the sticky bit
                    mark.unlink()
    with suppress(OSError):
        if is_locked(_file_of(folder.resolve())):
            users.append("a training of a user who cannot write to this folder")
    return users
