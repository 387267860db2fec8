"""The output folder of a run: the settings that identify the run, and the files that a run writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import BaseFileLock

from nnunet_hrmedseg.errors import SetupError, format_names
from nnunet_hrmedseg.io.files import (
    check_output_dir,
    make_output_dir,
    read_json_object,
    reporting_write_errors,
    write_atomically,
)
from nnunet_hrmedseg.io.locks import lock_or_refuse, release_and_remove
from nnunet_hrmedseg.io.processes import Processes

__all__ = ["CHECKPOINT", "CONTINUE", "check_folder", "open_run", "prepare_folder"]

CHECKPOINT = "checkpoint.pth"
LOCK = "run.lock"
SETTINGS = "run.json"
CONTINUE = "and repeat the command: it continues from the last checkpoint."
_RESULTS = (CHECKPOINT, "losses.csv", "losses.png", "broken_images.txt", "encoder.safetensors", "encoder.json")


def check_folder(folder: Path) -> None:
    """Check that a run can use this folder, before anything is loaded and without creating the folder.

    Raises:
        SetupError: The path is a file, cannot be created or written to, or the folder contains other files.
    """
    if check_output_dir(folder).is_dir() and _is_used(folder) and not (folder / SETTINGS).is_file():
        raise SetupError(f"{folder} holds other files: give -o a folder that is new or empty.")


def prepare_folder(folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Create the folder of a run, or check that it contains the beginning of the same run.

    Args:
        folder: Output folder of the run.
        settings: Everything that the result depends on, as JSON values; saved as run.json.
        overwrite: Start again whatever the folder contains.

    Returns:
        Whether there is a checkpoint to continue from.

    Raises:
        SetupError: The path is a file, cannot be written to, or the folder contains another run or other files.
    """
    settings = json.loads(json.dumps(settings))
    check_folder(folder)
    file = make_output_dir(folder) / SETTINGS
    if _is_used(folder):
        if overwrite:
            _remove([folder / name for name in _RESULTS])
        else:
            _check_same_run(folder, read_json_object(file, "settings of a run"), settings)
    with reporting_write_errors(file):
        write_atomically(file, (json.dumps(settings, indent=2) + "\n").encode())
    return (folder / CHECKPOINT).is_file()


def _is_used(folder: Path) -> bool:
    """Return whether a folder has files, without the lock, which a killed process leaves."""
    return any(not entry.name.startswith(LOCK) for entry in folder.iterdir())


def _check_same_run(folder: Path, existing: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    different = [key for key in {**existing, **settings} if existing.get(key) != settings.get(key)]
    if different:
        pairs = [f"{key} {existing.get(key)!r:.200} there and {settings.get(key)!r:.200} now" for key in different]
        raise SetupError(
            f"{folder} holds another run ({format_names(pairs)}). Give -o another folder, repeat the command that "
            f"started that run to continue it, or add --overwrite to start again."
        )


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise SetupError(
                f"{file} cannot be removed to start again ({error}). If another program has the file open, close it "
                f"there."
            ) from error


@contextmanager
def open_run(folder: Path, settings: Mapping[str, Any], group: Processes, *, overwrite: bool) -> Iterator[None]:
    """Call `prepare_folder` in the first process, and keep other commands out of the folder within this context.

    Raises:
        SetupError: See `prepare_folder`; another command is running in the folder; or a process on another machine does
            not see the folder.
    """
    held = None
    if group.first:
        held = _locked(make_output_dir(folder), group.log)
    try:
        if group.first:
            prepare_folder(folder, settings, overwrite=overwrite)
        group.wait()
        if not folder.is_dir():
            raise SetupError(f"{folder} is not there in every process: -o must be on a disk that all machines share.")
        yield
    finally:
        if held is not None:
            release_and_remove(held)


def _locked(folder: Path, log: Callable[[str], None]) -> BaseFileLock | None:
    file = folder / LOCK
    return lock_or_refuse(
        file,
        f"Another command is training an encoder in {folder}: it holds {file}. Two commands would overwrite each "
        f"other's checkpoints. Wait for it or end it, or give -o another folder.",
        lambda error: log(
            f"Warning: {file} cannot be locked ({error}). Do not train in this folder by two commands at once."
        ),
    )
