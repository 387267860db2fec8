"""Which files belong to which case, by nnU-Net's names: CASE_0000.png, CASE_0001.png, one for each channel."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_hrmedseg.errors import HRMedSegError, some

__all__ = ["Case", "find_cases"]


@dataclass(frozen=True)
class Case:
    """A name, and the files of its channels in order."""

    name: str
    files: tuple[Path, ...]


def find_cases(inputs: Sequence[Path], file_ending: str) -> list[Case]:
    """The cases of a folder, or of single files, by name.

    In a folder, only files in nnU-Net's naming count. Single files need not have a channel number: one without is a
    case of its own, whose file holds all channels.

    Raises:
        HRMedSegError: nothing there, no file of this ending, or two inputs with the same name.
    """
    files: dict[str, list[Path]] = {}
    for path in inputs:
        if path.is_dir():
            found = _in_folder(path, file_ending)
        elif path.is_file():
            match = _numbered(path.name, file_ending)
            found = {match[1] if match else _without_ending(path, file_ending): [path]}
        else:
            raise HRMedSegError(f"{path} does not exist. Give a folder of images, or image files.")
        for name, more in found.items():
            files.setdefault(name, []).extend(more)
    for name, of_case in files.items():
        twice = len({file.name for file in of_case}) < len(of_case)
        if twice or (len(of_case) > 1 and not all(_numbered(file.name, file_ending) for file in of_case)):
            raise HRMedSegError(
                f"Several images would have the label map {name}{file_ending}: {some(list(map(str, of_case)))}. "
                f"Predict them one after the other, or rename them."
            )
    return [Case(name, tuple(sorted(of_case, key=lambda f: f.name))) for name, of_case in sorted(files.items())]


def _in_folder(folder: Path, file_ending: str) -> dict[str, list[Path]]:
    cases: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        match = _numbered(file.name, file_ending)
        if match and file.is_file():
            cases.setdefault(match[1], []).append(file)
    if not cases:
        there = some(sorted(file.name for file in folder.iterdir())) or "nothing"
        raise HRMedSegError(
            f"{folder} holds no images that are named as for nnU-Net: CASE_0000{file_ending}, and where channels are "
            f"files of their own CASE_0001{file_ending} and so on. There: {there}."
        )
    return cases


def _numbered(name: str, file_ending: str) -> re.Match | None:
    return re.fullmatch(r"(.+)_\d{4}" + re.escape(file_ending), name)


def _without_ending(file: Path, file_ending: str) -> str:
    return file.name.removesuffix(file_ending) if file.name.endswith(file_ending) else file.stem
