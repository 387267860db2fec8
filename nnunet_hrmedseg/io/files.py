"""Files that appear whole or not at all; and JSON, which may come from anybody."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.io.file_kinds import recognize_file

__all__ = [
    "atomic_path",
    "check_output_dir",
    "disk_remedy",
    "escape_formula",
    "file_sha256",
    "is_disk_error",
    "json_safe",
    "make_output_dir",
    "read_json",
    "read_json_object",
    "replace_directory",
    "reporting_write_errors",
    "write_atomically",
]


FULL = {errno.ENOSPC, errno.EDQUOT}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
SAID_BY_TORCH = ("inline_container", "PytorchStreamWriter", "iostream error")
"""In the messages of the RuntimeErrors that torch.save raises in place of an OSError."""


def is_disk_error(error: OSError) -> bool:
    """Return whether the disk is full, or a file or folder may not be read or written."""
    return error.errno in FULL | FORBIDDEN


def disk_remedy(error: Exception) -> str:
    """Return the beginning of a sentence on what to do about a failed write."""
    forbidden = isinstance(error, OSError) and error.errno in FORBIDDEN
    return "Permit writing there" if forbidden else "Make room on the disk"


@contextmanager
def reporting_write_errors(place: Path, then: str = "or give another place.") -> Iterator[None]:
    """Turn a failed write within this context into an error with advice; what is written there leaves `place` whole.

    Args:
        place: file or folder that is replaced as a whole, or not at all.
        then: what to do beside making room, for the message.

    Raises:
        HRMedSegError: for an OSError, and for the RuntimeError that torch.save raises instead.
    """
    try:
        yield
    except HRMedSegError:
        raise
    except (OSError, RuntimeError) as error:
        reason = str(error)
        if not isinstance(error, OSError):
            if not any(part in reason for part in SAID_BY_TORCH):
                raise
            reason = f"torch could not write all of it, as on a full disk: {reason}"
        raise HRMedSegError(
            f"{place} could not be written ({reason}); what was there before is untouched. {disk_remedy(error)}, {then}"
        ) from error


def check_output_dir(path: Path) -> Path:
    """Check, without making it, that a folder can be made at `path` and written to. Returns `path`.

    Raises:
        HRMedSegError: as `make_output_dir`.
    """
    # os.path, as Path.is_file raises where a folder above may not be looked into
    nearest = next(place for place in (path.absolute(), *path.absolute().parents) if os.path.lexists(place))
    if not os.path.isdir(nearest):
        what = "is a file" if os.path.isfile(nearest) else "is not a folder"
        if nearest == path.absolute():
            raise HRMedSegError(f"{path} {what}; a folder is needed to write to. Give another place.")
        raise HRMedSegError(f"{path} cannot be made: {nearest} {what}. Give another place.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        if nearest == path.absolute():
            raise HRMedSegError(
                f"Nothing can be written to the folder {path}: permit it (write access), or give another."
            )
        raise HRMedSegError(
            f"The folder {path} cannot be made: nothing can be written to {nearest}. Permit it (write access), or give "
            f"another place."
        )
    return path


def make_output_dir(path: Path) -> Path:
    """Make the folder that a command was told to write to, if it is not there. Returns `path`.

    Raises:
        HRMedSegError: it is a file or below one, it cannot be made, or nothing can be written to it.
    """
    check_output_dir(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HRMedSegError(
            f"The folder {path} cannot be made ({error.strerror}). Give another place, or see to it that this one can "
            f"be written to."
        ) from error
    return path


@contextmanager
def atomic_path(file: Path) -> Iterator[Path]:
    """A temporary name beside `file` to write to; at the end it takes the place of `file`.

    If anything fails, `file` is as it was, and nothing is left beside it; only a process that is killed leaves it.
    """
    temporary = file.with_name(file.name + ".incomplete")
    try:
        yield temporary
        os.replace(temporary, file)
    except BaseException:
        with suppress(OSError):  # what went wrong first is what matters
            temporary.unlink()
        raise


def write_atomically(file: Path, content: bytes) -> None:
    """The file with this content, or as it was before: never half of it."""
    with atomic_path(file) as temporary:
        temporary.write_bytes(content)


def file_sha256(*files: Path) -> str:
    """Return the sha256 of a file, or of several one after the other, which are read piece by piece."""
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def replace_directory(new: Path, place: Path) -> None:
    """The folder `new` takes the place of `place`, which is as it was before if that fails. Both are on one disk."""
    old = new.with_name(f"{new.name}.replaced")
    if place.exists():
        os.rename(place, old)
    try:
        os.rename(new, place)
    except OSError:
        if old.exists():
            os.rename(old, place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def read_json(file: Path) -> Any:
    """What a JSON file holds, of whatever type.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no JSON in UTF-8, or nested too deeply to be anything that is read here.
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


def read_json_object(file: Path, what: str) -> dict[str, Any]:
    """The same of a file that has to hold names and values.

    Args:
        what: the file is, for the message.

    Raises:
        HRMedSegError: it cannot be read, or holds something else.
    """
    try:
        content = read_json(file)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not names and values")
    except (OSError, ValueError) as error:
        raise HRMedSegError(f"{file} is no {what} that can be read: {error}. Correct it, or copy it again.") from error
    return content


def json_safe(value: Any) -> Any:
    """For JSON, which has neither NaN nor infinity: the same with null in their place, and tuples as lists."""
    if isinstance(value, dict):
        return {name: json_safe(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def escape_formula(text: str) -> str:
    """For a cell of a CSV file: a spreadsheet would compute a text that begins like a formula, so it gets a quote."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
