"""Assignment of DICOM files of any name to cases: archives and scanners name them as they like."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from hrmedseg_onnx.cases import Case, check_unique, merge_equal_names
from hrmedseg_onnx.dicom import SUFFIXES, is_dicom, is_image
from hrmedseg_onnx.errors import DataError, format_names
from hrmedseg_onnx.file_names import case_and_channel
from hrmedseg_onnx.skipped import describe_skipped, is_hidden

__all__ = ["DICOM_ENDING", "dicom_cases_of_folder", "find_dicom_cases", "is_dicom_image"]

DICOM_ENDING = ".dcm"


def find_dicom_cases(inputs: Sequence[Path], *, channels: int) -> tuple[list[Case], list[str]]:
    """Return the cases of folders and single files, sorted by name, and sentences with the names of skipped files.

    Folders are searched with all folders below them, and every DICOM image in them is used, whatever its name: its
    content decides. Images are one case each, except for those that nnU-Net's names join to the channels of a case
    (CASE_0000.dcm, CASE_0001.dcm). The name of a case is that of the file, after the names of the folders below the
    given one.

    Args:
        inputs: folders and files.
        channels: number of channels of the model.

    Raises:
        DataError: an input does not exist or is not DICOM, a folder has no DICOM image, or two inputs have the same
            name.
        SetupError: pydicom is not installed.
    """
    named: list[tuple[str, Path]] = []
    sentences: list[str] = []
    for path in inputs:
        if path.is_dir():
            images, skipped = _in_folder(path)
            named += [(_name(image.relative_to(path)), image) for image in images]
            sentences += describe_skipped(path, [file.relative_to(path).as_posix() for file in skipped])
        elif not path.is_file():
            raise DataError(f"{path} does not exist. Give a folder of DICOM files, or DICOM files.")
        elif not is_dicom(path):
            raise DataError(f"{path} is not a DICOM file, and a DICOM SEG refers to one. Leave --dicom_seg out.")
        else:
            named.append((_name(Path(path.name)), path))
    cases = _joined(named, channels)
    check_unique(cases, DICOM_ENDING)
    return sorted(cases, key=lambda case: case.name), sentences


def dicom_cases_of_folder(
    folder: Path, *, channels: int, is_used: Callable[[Path], bool]
) -> tuple[list[Case], list[str]]:
    """Return the cases of a folder as `find_dicom_cases` does, with faults in place of errors, and unused files' names.

    Args:
        folder: a folder, which may be empty.
        channels: number of channels of the model.
        is_used: whether a file is an image, such as `is_dicom_image`.
    """
    images, others = _split(folder, is_used)
    cases = _joined([(_name(image.relative_to(folder)), image) for image in images], channels)
    return merge_equal_names(cases, DICOM_ENDING), [file.relative_to(folder).as_posix() for file in others]


def is_dicom_image(file: Path) -> bool:
    """Return whether a file is a DICOM image, by its content; true if it may not be read, which reading reports."""
    try:
        return is_dicom(file) and is_image(file)
    except PermissionError:
        return True


def _in_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the DICOM images below a folder, and the other files."""
    images, others = _split(folder, is_dicom_image)
    if not images:
        there = format_names([file.relative_to(folder).as_posix() for file in others]) or "nothing"
        raise DataError(
            f"{folder} holds no DICOM images. It holds {there}. Give another folder, or leave --dicom_seg out."
        )
    return images, others


def _split(folder: Path, is_used: Callable[[Path], bool]) -> tuple[list[Path], list[Path]]:
    """Return the files below a folder that are used, and the others. Hidden ones are neither."""
    images: list[Path] = []
    others: list[Path] = []
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not any(map(is_hidden, file.relative_to(folder).parts)):
            (images if is_used(file) else others).append(file)
    return images, others


def _name(path: Path) -> str:
    """Return the path as a name, without the ending of DICOM files; UIDs have points, so no other is an ending."""
    name = path.name
    if name.lower().endswith(SUFFIXES):
        name = name[: name.rindex(".")]
    return "_".join((*path.parts[:-1], name))


def _joined(named: Sequence[tuple[str, Path]], channels: int) -> list[Case]:
    """Join files whose names are numbered as the channels of a case."""
    numbered: dict[str, list[tuple[int, str, Path]]] = defaultdict(list)
    cases = []
    for name, file in named:
        case = case_and_channel(name)
        if case is None:
            cases.append(Case(name, (file,)))
        else:
            numbered[case[0]].append((case[1], name, file))
    for name, files in numbered.items():
        files.sort()
        if [number for number, _, _ in files] in ([0], [*range(channels)]):
            cases.append(Case(name, tuple(file for _, _, file in files)))
        else:  # cameras number their files as well
            cases += [Case(own, (file,)) for _, own, file in files]
    return cases
