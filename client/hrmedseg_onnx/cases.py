"""Assignment of files to cases by nnU-Net's names: CASE_0000.png, CASE_0001.png, one file for each channel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from hrmedseg_onnx.errors import DataError, format_names
from hrmedseg_onnx.file_names import case_and_channel
from hrmedseg_onnx.skipped import OF_NNUNET, describe_skipped, find_unused, is_hidden

__all__ = ["Case", "check_unique", "find_cases", "skipped_inputs"]


@dataclass(frozen=True)
class Case:
    """A case.

    Attributes:
        name: name of the case.
        files: one file for each channel in order, or one with all channels.
        fault: why the case cannot be predicted; empty if no reason is known.
    """

    name: str
    files: tuple[Path, ...]
    fault: str = ""


def find_cases(inputs: Sequence[Path], file_ending: str, *, channels: int, readable: Sequence[str] = ()) -> list[Case]:
    """Return the cases of folders and single files, sorted by name.

    In a folder, only files with nnU-Net's names are used, and a case whose files are not numbered from _0000 has a
    fault. Cameras also number their files, so the number of a single file is taken for a channel only if it is _0000,
    or if all channels are given. Any other single file is a case with all channels. Hidden files are skipped; see
    `skipped_inputs`.

    Args:
        inputs: folders and files.
        file_ending: ending of the model's images and label maps.
        channels: number of channels of the model.
        readable: other endings that single files may have.

    Raises:
        DataError: an input does not exist or has another ending, there are only hidden files, or two inputs have the
            same name.
    """
    in_folders: dict[str, list[Path]] = defaultdict(list)
    numbered: dict[str, list[Path]] = defaultdict(list)
    cases = []
    for path in inputs:
        if path.is_dir():
            for name, files in _in_folder(path, file_ending).items():
                in_folders[name] += files
        elif path.is_file():
            named = case_and_channel(path.name, file_ending)
            if named and not is_hidden(path.name):
                numbered[named[0]].append(path)
            elif not is_hidden(path.name):
                cases.append(Case(_without_ending(path, file_ending, readable), (path,)))
        else:
            raise DataError(f"{path} does not exist. Give a folder of images, or image files.")
    cases += [_case_of_folder(name, files, file_ending, channels) for name, files in in_folders.items()]
    for name, files in numbered.items():
        cases += _cases_of_files(name, files, file_ending, channels)
    if not cases:
        raise DataError(f"{format_names(list(map(str, inputs)))}: hidden files are not read. Give image files.")
    check_unique(cases, file_ending)
    return sorted(cases, key=lambda case: case.name)


def skipped_inputs(inputs: Sequence[Path], used: Collection[Path]) -> list[str]:
    """Return sentences with the names of files that are not used.

    Args:
        inputs: folders and files.
        used: all files that are read.
    """
    sentences = []
    for folder in filter(Path.is_dir, inputs):
        sentences += describe_skipped(folder, find_unused(folder, used, OF_NNUNET))
    hidden = [str(path) for path in inputs if path.is_file() and path not in used]
    return sentences + ([f"Skipped: {format_names(hidden)}."] if hidden else [])


def _in_folder(folder: Path, file_ending: str) -> dict[str, list[Path]]:
    cases: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(folder.iterdir()):
        named = case_and_channel(file.name, file_ending)
        if named and file.is_file() and not is_hidden(file.name):
            cases[named[0]].append(file)
    if not cases:
        there = format_names(sorted(file.name for file in folder.iterdir())) or "nothing"
        raise DataError(
            f"{folder} holds no images that are named as for nnU-Net: CASE_0000{file_ending}, and for further channels "
            f"CASE_0001{file_ending} and so on. It holds {there}. Rename them, or give the files "
            f"instead of the folder."
        )
    return cases


def _case_of_folder(name: str, files: list[Path], file_ending: str, channels: int) -> Case:
    files = sorted(files, key=lambda file: file.name)
    # fewer files than channels: one file may hold several channels, which is checked after reading
    if len(files) <= channels and _numbers(files, file_ending) == [*range(len(files))]:
        return Case(name, tuple(files))
    wanted = f"{name}_0000{file_ending}"
    if channels > 1:
        wanted += f" to {name}_{channels - 1:04}{file_ending}, or {wanted} alone with all channels"
    fault = (
        f"There is {format_names([file.name for file in files])}; the model takes {wanted}. Add or remove files; or, "
        f"if each file is a separate image, give the files instead of the folder."
    )
    return Case(name, tuple(files), fault)


def _cases_of_files(name: str, files: list[Path], file_ending: str, channels: int) -> list[Case]:
    files = sorted(files, key=lambda file: file.name)
    if _numbers(files, file_ending) in ([0], [*range(channels)]):
        return [Case(name, tuple(files))]
    return [Case(file.name.removesuffix(file_ending), (file,)) for file in files]


def check_unique(cases: Sequence[Case], file_ending: str) -> None:
    """Check that each case has a label map of its own.

    Raises:
        DataError: several cases have the same name.
    """
    of_name: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        of_name[case.name].append(case)
    for name, same in of_name.items():
        files = [file for case in same for file in case.files]
        # the second condition: the same channel from two folders
        if len(same) > 1 or len({file.name for file in files}) < len(files):
            raise DataError(
                f"Several images would have the label map {name}{file_ending}: {format_names(list(map(str, files)))}. "
                f"Predict them one after the other, or rename them."
            )


def _numbers(files: Sequence[Path], file_ending: str) -> list[int]:
    named = (case_and_channel(file.name, file_ending) for file in files)
    return [channel for _, channel in filter(None, named)]


def _without_ending(file: Path, file_ending: str, readable: Sequence[str]) -> str:
    for ending in (file_ending, *readable):
        if file.name.lower().endswith(ending.lower()):
            return file.name[: -len(ending)]
    others = [ending for ending in readable if ending != file_ending]
    also = f" ({', '.join(others)} can be read as well)" if others else ""
    raise DataError(
        f"{file} is of another kind than the images that the model was trained with, which are {file_ending} "
        f"files{also}. Convert it to {file_ending}."
    )
