"""Files that appear whole or not at all; and JSON, which may come from anybody."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.file_kinds import recognized

__all__ = [
    "finite",
    "json_object",
    "output_folder",
    "put_folder",
    "read_json",
    "replacing",
    "spreadsheet_text",
    "write_atomically",
]


def output_folder(path: Path) -> Path:
    """The folder that a command was told to write to; made if it is not there. Returns `path`.

    Raises:
        HRMedSegError: it is a file or below one, it cannot be made, or nothing can be written to it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        # os.path, as Path.is_file raises where a folder above may not be looked into
        file = next((place for place in (path, *path.parents) if os.path.isfile(place)), None)
        if file == path:
            raise HRMedSegError(f"{path} is a file; a folder is needed to write to. Give another place.") from error
        if file is not None:
            raise HRMedSegError(f"{path} cannot be made: {file} is a file. Give another place.") from error
        raise HRMedSegError(
            f"The folder {path} cannot be made ({error.strerror}). Give another place, or see to it that this one can "
            f"be written to."
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise HRMedSegError(f"Nothing can be written to the folder {path}: permit it (write access), or give another.")
    return path


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
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
    with replacing(file) as temporary:
        temporary.write_bytes(content)


def put_folder(new: Path, place: Path) -> None:
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
        kind = recognized(file)
        if kind is None:
            raise
        raise ValueError(f"it is {kind}") from error


def json_object(file: Path, what: str) -> dict[str, Any]:
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


def finite(value: Any) -> Any:
    """For JSON, which has neither NaN nor infinity: the same with null in their place, and tuples as lists."""
    if isinstance(value, dict):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def spreadsheet_text(text: str) -> str:
    """For a cell of a CSV file: a spreadsheet would compute a text that begins like a formula, so it gets a quote."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
