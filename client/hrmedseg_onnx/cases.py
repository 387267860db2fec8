"""Assignment of files to cases by nnU-Net's names: CASE_0000.png, CASE_0001.png, one file for each channel.

Folders of pictures need no such names if a file holds all channels of the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from hrmedseg_onnx.errors import DataError, format_names
from hrmedseg_onnx.file_names import case_and_channel
from hrmedseg_onnx.skipped import OF_NNUNET, describe_skipped, find_unused, is_hidden

__all__ = ["Case", "cases_of_folder", "check_unique", "find_cases", "merge_equal_names", "skipped_inputs"]


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


def find_cases(
    inputs: Sequence[Path], file_ending: str, *, channels: int, readable: Sequence[str] = (), plain_names: bool = False
) -> list[Case]:
    """Return the cases of folders and single files, sorted by name.

    In a folder, only files with nnU-Net's names are used, and a case whose files are not numbered from _0000 has a
    fault. If no file has such a name, and `plain_names` is true, each image is a case.

    Cameras also number their files, so the number of a single file is taken for a channel only if it is _0000, or if
    all channels are given. Any other single file is a case with all channels. Hidden files are skipped; see
    `skipped_inputs`.

    Args:
        inputs: folders and files.
        file_ending: ending of the model's images and label maps.
        channels: number of channels of the model.
        readable: other endings that single files, and files with plain names, may have.
        plain_names: whether folders may hold files of any name, with all channels.

    Raises:
        DataError: an input does not exist or has another ending, there are only hidden files, or two inputs have the
            same name.
    """
    in_folders: dict[str, list[Path]] = defaultdict(list)
    numbered: dict[str, list[Path]] = defaultdict(list)
    cases = []
    for path in inputs:
        if path.is_dir():
            of_nnunet = _in_folder(path, file_ending)
            plain = [] if of_nnunet or not plain_names else _plain_cases(path, (file_ending, *readable), channels)
            if not of_nnunet and not plain:
                raise _no_images(path, (file_ending, *readable) if plain_names else (file_ending,))
            cases += plain
            for name, files in of_nnunet.items():
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


def cases_of_folder(
    folder: Path, file_ending: str, *, channels: int, readable: Sequence[str] = (), plain_names: bool = False
) -> list[Case]:
    """Return the cases of one folder as `find_cases` does, but none for an empty one, and faults in place of errors."""
    named = _in_folder(folder, file_ending)
    if named:
        return [_case_of_folder(name, files, file_ending, channels) for name, files in sorted(named.items())]
    plain = _plain_cases(folder, (file_ending, *readable), channels) if plain_names else []
    return merge_equal_names(plain, file_ending)


def _in_folder(folder: Path, file_ending: str) -> dict[str, list[Path]]:
    """Return the files that are named as for nnU-Net, by case."""
    cases: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(folder.iterdir()):
        named = case_and_channel(file.name, file_ending)
        if named and file.is_file() and not is_hidden(file.name):
            cases[named[0]].append(file)
    return cases


def _plain_cases(folder: Path, endings: Sequence[str], channels: int) -> list[Case]:
    """Return a case for each image of a folder, named as its file; files that may be channels of a case have a fault.

    Args:
        folder: a folder without files that are named as for nnU-Net.
        endings: endings of the images.
        channels: number of channels of the model.
    """
    cases = []
    numbered: dict[str, list[Case]] = defaultdict(list)
    for file in sorted(folder.iterdir()):
        name = _name_of_image(file, endings)
        if name is not None and file.is_file() and not is_hidden(file.name):
            cases.append(Case(name, (file,)))
            numbered[(case_and_channel(name) or (name, 0))[0]].append(cases[-1])
    for same in numbered.values():
        numbers = [(case_and_channel(case.name) or ("", -1))[1] for case in same]
        if channels > 1 and numbers == [*range(channels)]:
            fault = (
                f"{format_names([case.files[0].name for case in same])} may be {channels} images, or the {channels} "
                f"channels of one. Give the files instead of the folder if they are images; else save them as one RGB "
                f"image."
            )
            cases = [Case(case.name, case.files, fault) if case in same else case for case in cases]
    return cases


def _no_images(folder: Path, endings: Sequence[str]) -> DataError:
    there = format_names(sorted(file.name for file in folder.iterdir())) or "nothing"
    ending, *others = dict.fromkeys(endings)
    if others:
        return DataError(
            f"{folder} holds no images, that is, files with the ending {', '.join((ending, *others))}. It holds "
            f"{there}. Convert them to {ending}, or give another folder."
        )
    return DataError(
        f"{folder} holds no images that are named as for nnU-Net: CASE_0000{ending}, and for further channels "
        f"CASE_0001{ending} and so on. It holds {there}. Rename them, or give the files instead of the folder."
    )


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
            raise DataError(_same_name(name, file_ending, files))


def merge_equal_names(cases: Sequence[Case], file_ending: str) -> list[Case]:
    """Return the cases sorted by name, with one case and its fault in place of several of one name."""
    of_name: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        of_name[case.name].append(case)
    merged = []
    for name, same in sorted(of_name.items()):
        files = tuple(file for case in same for file in case.files)
        merged.append(same[0] if len(same) == 1 else Case(name, files, _same_name(name, file_ending, files)))
    return merged


def _same_name(name: str, file_ending: str, files: Sequence[Path]) -> str:
    return (
        f"Several images would have the label map {name}{file_ending}: {format_names(list(map(str, files)))}. Predict "
        f"them one after the other, or rename them."
    )


def _numbers(files: Sequence[Path], file_ending: str) -> list[int]:
    named = (case_and_channel(file.name, file_ending) for file in files)
    return [channel for _, channel in filter(None, named)]


def _without_ending(file: Path, file_ending: str, readable: Sequence[str]) -> str:
    name = _name_of_image(file, (file_ending, *readable))
    if name is not None:
        return name
    others = [ending for ending in readable if ending != file_ending]
    also = f" ({', '.join(others)} can be read as well)" if others else ""
    raise DataError(
        f"{file} is of another kind than the images that the model was trained with, which are {file_ending} "
        f"files{also}. Convert it to {file_ending}."
    )


def _name_of_image(file: Path, endings: Sequence[str]) -> str | None:
    """Return the name of a file without its ending, in any case, or None if it has another ending."""
    for ending in endings:
        if file.name.lower().endswith(ending.lower()):
            return file.name[: -len(ending)]
    return None
