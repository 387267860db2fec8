"""Output folders, files and folders that are replaced as a whole or not at all, checksums, and JSON of any origin."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from hrmedseg_onnx.files import (
    atomic_path,
    atomic_path_same_name,
    check_output_dir,
    disk_remedy,
    is_denied,
    is_disk_error,
    make_output_dir,
    read_json,
    reporting_write_errors,
    write_atomically,
)
from nnunet_hrmedseg.errors import DataError, HRMedSegError
from nnunet_hrmedseg.io.access import is_writable, may_replace, owner_of

__all__ = [
    "atomic_path",
    "atomic_path_same_name",
    "check_output_dir",
    "disk_remedy",
    "escape_formula",
    "file_sha256",
    "is_denied",
    "is_disk_error",
    "json_safe",
    "make_writable",
    "make_output_dir",
    "read_json",
    "read_json_object",
    "remove_directory",
    "replace_directory",
    "reporting_write_errors",
    "write_atomically",
]


def file_sha256(*files: str | os.PathLike) -> str:
    """Return the sha256 of one file, or of the concatenated content of several."""
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def replace_directory(new: Path, place: Path) -> None:
    """Move the folder `new` to `place`; if that fails, `place` is unchanged. Both must be on the same disk."""
    old = new.with_name(f"{new.name}.replaced-{uuid4().hex[:8]}")  # a new name: an earlier one may not be removable
    if os.path.lexists(place):
        os.rename(place, old)
    try:
        os.rename(new, place)
    except OSError:
        if os.path.lexists(old):
            os.rename(old, place)
        raise
    remove_directory(old)


def remove_directory(folder: Path) -> None:
    """Remove a folder, or a link to one, as far as access rights allow. Warn if anything is left."""
    if folder.is_symlink():
        with suppress(OSError):
            folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)
    if os.path.lexists(folder):
        warnings.warn(
            f"{folder} is not used anymore, but could not be removed. It belongs to the user {owner_of(folder)}, who "
            f"can remove it.",
            stacklevel=2,
        )


def make_writable(*files: Path) -> None:
    """Replace files that may be replaced but not written by copies, for programs that write into existing files.

    Files of other users are such files, and copies of read-only files.
    """
    for file in files:
        if file.is_file() and not is_writable(file) and may_replace(file):
            with atomic_path(file, concurrent=True) as temporary:
                shutil.copyfile(file, temporary)


def read_json_object(file: Path, what: str, error_class: type[HRMedSegError] = DataError) -> dict[str, Any]:
    """Return the content of a JSON file that must hold names and values.

    Args:
        file: the file to read.
        what: description of the file for the error message.
        error_class: kind of the error.

    Raises:
        DataError: or `error_class`; the file cannot be read, or holds something else.
    """
    try:
        content = read_json(file)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not names and values")
    except (OSError, ValueError) as error:
        raise error_class(f"{file} cannot be read as {what}: {error}. Correct it, or copy it again.") from error
    return content


def json_safe(value: Any) -> Any:
    """Return a value for strict JSON: NaN and infinity as null, tuples as lists."""
    if isinstance(value, dict):
        return {name: json_safe(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def escape_formula(text: str) -> str:
    """Return a text for a cell of a CSV file, quoted if a spreadsheet would otherwise compute it as a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
