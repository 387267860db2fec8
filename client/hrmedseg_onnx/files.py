"""Output folders, files that are written as a whole or not at all, and JSON of any origin. Imports nothing heavy."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from hrmedseg_onnx.errors import HRMedSegError, SetupError
from hrmedseg_onnx.file_kinds import recognize_file

__all__ = [
    "atomic_path",
    "atomic_path_same_name",
    "check_output_dir",
    "disk_remedy",
    "is_denied",
    "is_disk_error",
    "make_output_dir",
    "read_json",
    "reporting_write_errors",
    "write_atomically",
]

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
TORCH_WRITE_ERRORS = ("inline_container", "PytorchStreamWriter", "iostream error")
"""Parts of the messages of the RuntimeErrors that torch.save raises in place of an OSError."""


def is_disk_error(error: OSError) -> bool:
    """Return whether the disk is full, or a file or folder may not be read or written."""
    return error.errno in DISK_FULL or is_denied(error)


def is_denied(error: Exception) -> bool:
    """Return whether a file or folder may not be read or written."""
    return isinstance(error, OSError) and error.errno in FORBIDDEN


def disk_remedy(error: Exception) -> str:
    """Return the beginning of a sentence on how to fix a failed write."""
    return "Permit writing there" if is_denied(error) else "Make room on the disk"


@contextmanager
def reporting_write_errors(place: Path, then: str = "or give another place.") -> Iterator[None]:
    """Turn a failed write within this context into an error with advice.

    Args:
        place: file or folder that is replaced as a whole, or not at all.
        then: rest of the advice, after "Make room on the disk, ".

    Raises:
        SetupError: for an OSError, and for the RuntimeError that torch.save raises instead.
    """
    try:
        yield
    except HRMedSegError:
        raise
    except (OSError, RuntimeError) as error:
        reason = str(error)
        if not isinstance(error, OSError):
            if not any(part in reason for part in TORCH_WRITE_ERRORS):
                raise
            reason = f"torch could not write all of it, as on a full disk: {reason}"
        raise SetupError(
            f"{place} could not be written ({reason}); what was there before is untouched. {disk_remedy(error)}, {then}"
        ) from error


def check_output_dir(path: Path) -> Path:
    """Check, without creating it, that a folder can be created at `path` and written to.

    Returns:
        `path`.

    Raises:
        SetupError: `path` is or would be below a file, or may not be written to.
    """
    # os.path, because Path.is_file raises where a parent folder may not be read
    nearest = next(place for place in (path.absolute(), *path.absolute().parents) if os.path.lexists(place))
    if not os.path.isdir(nearest):
        what = "is a file" if os.path.isfile(nearest) else "is not a folder"
        if nearest == path.absolute():
            raise SetupError(f"{path} {what}; a folder is needed to write to. Give another place.")
        raise SetupError(f"{path} cannot be made: {nearest} {what}. Give another place.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        if nearest == path.absolute():
            raise SetupError(f"Nothing can be written to the folder {path}: permit it (write access), or give another.")
        raise SetupError(
            f"The folder {path} cannot be made: nothing can be written to {nearest}. Permit it (write access), or give "
            f"another place."
        )
    return path


def make_output_dir(path: Path) -> Path:
    """Create an output folder, unless it exists.

    Returns:
        `path`.

    Raises:
        SetupError: `path` is or would be below a file, cannot be created, or may not be written to.
    """
    check_output_dir(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(
            f"The folder {path} cannot be made ({error.strerror}). Give another place, or make this one writable."
        ) from error
    return path


@contextmanager
def atomic_path(file: Path, *, concurrent: bool = False) -> Iterator[Path]:
    """Provide a temporary path beside `file`; at the end of the context, it replaces `file`.

    If the context raises, `file` is unchanged, and the temporary file is removed. Only a killed process leaves it.

    Args:
        file: the file to write.
        concurrent: whether several processes may write `file` at the same time; each then has its own temporary path.
    """
    temporary = file.with_name(f"{file.name}.{uuid4().hex[:8]}.incomplete" if concurrent else f"{file.name}.incomplete")
    with suppress(OSError):  # of a process of another user that was killed, which may be removed but not written
        temporary.unlink()
    try:
        yield temporary
        os.replace(temporary, file)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            temporary.unlink()
        raise


@contextmanager
def atomic_path_same_name(file: Path) -> Iterator[Path]:
    """Provide a temporary path with the name of `file`, for writers that take the format from the file's ending.

    At the end of the context, all files in the temporary folder are moved to the folder of `file`.
    """
    with tempfile.TemporaryDirectory(prefix=".incomplete_", dir=file.parent) as folder:
        yield Path(folder) / file.name
        for written in Path(folder).iterdir():
            os.replace(written, file.with_name(written.name))


def write_atomically(file: Path, content: bytes) -> None:
    """Write a file as a whole: if that fails, `file` is unchanged."""
    with atomic_path(file) as temporary:
        temporary.write_bytes(content)


def read_json(file: Path) -> Any:
    """Return the content of a JSON file, of any type.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is not JSON in UTF-8, or is nested too deeply.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        kind = recognize_file(file)
        if kind is None:
            raise
        raise ValueError(f"it is {kind}") from error
