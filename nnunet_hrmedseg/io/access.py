"""Rights of users and groups: what may be written, what a group shares, and whom to ask for access."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hrmedseg_onnx.files import is_denied
from nnunet_hrmedseg.errors import SetupError

__all__ = ["is_readable", "is_writable", "may_replace", "owner_of", "reporting_denied_access", "share_as_parent"]

GROUP = stat.S_IRWXG | stat.S_ISGID


def is_writable(path: Path) -> bool:
    """Return whether this process may write to a file, or create and rename files in a folder."""
    return _permits(path, os.W_OK | (os.X_OK if os.path.isdir(path) else 0))


def is_readable(file: Path) -> bool:
    """Return whether this process may read a file."""
    return _permits(file, os.R_OK)


def _permits(path: Path, wanted: int) -> bool:
    return os.access(path, wanted, effective_ids=os.access in os.supports_effective_ids)


def may_replace(path: Path) -> bool:
    """Return whether this process may rename what is at `path`, if anything, and create it again."""
    if not is_writable(path.parent):
        return False
    folder = path.parent.stat()
    if os.name == "nt" or not folder.st_mode & stat.S_ISVTX or not os.path.lexists(path):
        return True
    return os.geteuid() in (0, folder.st_uid, path.lstat().st_uid)  # the sticky bit leaves it to owners


def owner_of(path: Path) -> str:
    """Return the name of the user whom a file or folder belongs to, or the number if the user has no name here."""
    try:
        return path.owner()
    except (KeyError, NotImplementedError, OSError):  # no such user, Windows, no such file
        with suppress(OSError):
            return str(path.stat().st_uid)
        return "unknown"


def share_as_parent(folder: Path) -> None:
    """Give a new folder in one that a group may write to that group and its rights, whatever the umask is.

    Members of the group can then replace what is in the new folder, too.
    """
    parent = folder.parent.stat()
    if os.name == "nt" or not parent.st_mode & stat.S_IWGRP:
        return
    with suppress(OSError):  # where this user is not in that group, its rights are nothing to pass on
        if folder.stat().st_gid != parent.st_gid:
            os.chown(folder, -1, parent.st_gid)
        folder.chmod(stat.S_IMODE(folder.stat().st_mode) | (parent.st_mode & GROUP))


@contextmanager
def reporting_denied_access() -> Iterator[None]:
    """Turn a denied access to a file or folder within this context into an error that states whom to ask.

    Raises:
        SetupError: for a PermissionError, and for an OSError of a read-only file system.
    """
    try:
        yield
    except OSError as error:
        if not is_denied(error) or not isinstance(error.filename, str | os.PathLike):
            raise
        raise SetupError(_describe(error, Path(error.filename))) from error


def _describe(error: OSError, path: Path) -> str:
    # os.path, because Path.exists raises where a parent folder may not be read
    nearest = next(place for place in (path.absolute(), *path.absolute().parents) if os.path.lexists(place))
    where = "It" if nearest == path.absolute() else f"The folder {nearest}"
    rights = stat.filemode(nearest.lstat().st_mode)
    own = os.name == "nt" or nearest.lstat().st_uid == os.geteuid()
    remedy = "Permit it (such as chmod -R u+rwX)" if own else "Ask this user for access (such as chmod -R g+rwX)"
    return (
        f"{path} cannot be read or written ({error.strerror}). {where} belongs to the user {owner_of(nearest)} "
        f"({rights}). {remedy}, or set nnUNet_raw, nnUNet_preprocessed or nnUNet_results to a folder of your own."
    )
