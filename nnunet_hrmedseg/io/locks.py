"""Locks between processes, on file systems with and without locks of their own. None outlives its process.

Where the file system has locks, the operating system frees them when the process ends. Where it has none (NFS and
Lustre mounted without flock), a marker file takes their place. Its holder touches it every `HEARTBEAT_SECONDS`. The
marker of a process that was killed is taken over: at once on the same machine, on another one after `LEASE_SECONDS`.
"""

from __future__ import annotations

import atexit
import errno
import os
import sys
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import BaseFileLock, FileLock, SoftFileLease, Timeout

from nnunet_hrmedseg.errors import SetupError

if sys.platform != "win32":
    import fcntl

__all__ = ["LockHeld", "is_locked", "lock", "lock_for_reading", "lock_or_refuse", "release_and_remove"]

# of flock, where the file system (or the server behind it) has no locks
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}

MARKER = ".holder"  # ending of the marker of a file that cannot be locked

# NFS shows another machine's heartbeat up to a minute late
LEASE_SECONDS = 120.0
HEARTBEAT_SECONDS = 20.0
POLL_SECONDS = 1.0


class LockHeld(Exception):  # noqa: N818  # not an error to the user
    """Another process holds the lock.

    Attributes:
        marker: on a file system without locks, the file that stands for the lock: delete it to free the lock.
        owner: who wrote that file; empty where the operating system knows.
    """

    def __init__(self, marker: Path | None = None, owner: str = "") -> None:
        super().__init__(owner)
        self.marker, self.owner = marker, owner

    def __str__(self) -> str:
        if self.marker is None:
            return ""
        return (
            f"This file system has no locks, so the file {self.marker} stands for one; {self.owner} wrote it. Delete "
            f"that file if this process no longer runs."
        )


def lock(file: Path, *, on_wait: Callable[[], Any] | None = None) -> BaseFileLock:
    """Return the lock of `file`, acquired. It ends with its `release()` or with this process, however that ends.

    Args:
        file: its folder exists. The file itself means nothing and may stay.
        on_wait: called once if another process holds the lock, which is then waited for. None: do not wait.

    Raises:
        LockHeld: another process holds it, and `on_wait` is None.
        OSError: the file cannot be made or opened.
    """
    # group-writable: members of a group that shares the folder lock the same file
    native = FileLock(file, mode=0o664, thread_local=False, fallback_to_soft=False)
    try:
        try:
            native.acquire(timeout=0)
        except Timeout:
            if on_wait is None:
                raise LockHeld from None
            on_wait()
            native.acquire()
        return native
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return _lease(file.with_name(file.name + MARKER), on_wait)


def lock_or_refuse(
    file: Path, refusal: str, on_failure: Callable[[OSError], Any] = lambda error: None
) -> BaseFileLock | None:
    """Return the lock of `file` for a process that must be the only one; None if the file cannot be locked.

    Args:
        file: see `lock`.
        refusal: message if another process holds the lock; what is known of that process is added.
        on_failure: called with the reason if the file cannot be locked.

    Raises:
        SetupError: another process holds it.
    """
    try:
        return lock(file)
    except LockHeld as held:
        raise SetupError(f"{refusal} {held}".rstrip()) from None
    except OSError as error:
        on_failure(error)
        return None


def release_and_remove(held: BaseFileLock) -> None:
    """Release a lock whose file nobody waits for, and remove the file."""
    # a marker's lock removes the marker itself, and the file beside it is left
    with suppress(OSError):  # where an open file cannot be removed, it stays and means nothing
        os.remove(str(held.lock_file).removesuffix(MARKER))
    held.release()


_read: weakref.WeakSet[BinaryIO] = weakref.WeakSet()


def _close_in_worker() -> None:
    for opened in list(_read):
        opened.close()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close_in_worker)  # a worker would hold the lock longer than its process


def lock_for_reading(file: Path) -> BinaryIO:
    """Return an existing file that is open and locked until it is closed, by any number of processes.

    It needs no write access. `is_locked` finds such a lock.

    Raises:
        OSError: the file cannot be opened, or the file system has no locks.
    """
    opened = open(file, "rb")
    try:
        if sys.platform == "win32":
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        fcntl.flock(opened, fcntl.LOCK_SH)  # waits for `is_locked` of another process
    except OSError:
        opened.close()
        raise
    _read.add(opened)
    return opened


def is_locked(file: Path) -> bool | None:
    """Return whether any process holds a lock of an existing file, without write access to it; None if unknown."""
    opened = _open(file)
    if opened is None or sys.platform == "win32":
        return None
    with opened:
        # on NFS, an exclusive lock needs write access; a shared one still finds exclusive locks
        for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH):
            try:
                fcntl.flock(opened, kind | fcntl.LOCK_NB)
                return False
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    return True
                if error.errno != errno.EBADF:
                    return None
    return None


def _open(file: Path) -> BinaryIO | None:
    for mode in ("r+b", "rb"):
        with suppress(OSError):
            return open(file, mode)
    return None


def _lease(marker: Path, on_wait: Callable[[], Any] | None) -> SoftFileLease:
    lease = SoftFileLease(
        marker, lease_duration=LEASE_SECONDS, heartbeat_interval=HEARTBEAT_SECONDS, thread_local=False
    )
    first_seen, end = _heartbeat(marker), time.monotonic() + LEASE_SECONDS + 2 * HEARTBEAT_SECONDS
    while True:
        try:
            lease.acquire(timeout=POLL_SECONDS)  # takes over a marker whose holder is dead
            break
        except Timeout:
            if on_wait is not None:
                on_wait()
                lease.acquire(poll_interval=POLL_SECONDS)
                break
            # a marker is a living process's if it is touched while we look; it may also just have been removed
            seen = _heartbeat(marker)
            if seen is not None and (seen != first_seen or time.monotonic() > end):
                owner = lease.owner
                raise LockHeld(marker, f"process {owner.pid} on {owner.hostname}" if owner else "a process") from None
    atexit.register(lease.release)  # a process that ends by itself leaves no marker
    return lease


def _heartbeat(marker: Path) -> int | None:
    try:
        return os.stat(marker).st_mtime_ns
    except FileNotFoundError:
        return None
