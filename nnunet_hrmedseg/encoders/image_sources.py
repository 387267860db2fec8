"""The images that distillation sees: from folders, SA-1B's tar shards and nnU-Net raw datasets, as one list."""

from __future__ import annotations

import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from nnunet_hrmedseg.errors import DataError, PlanError, format_names
from nnunet_hrmedseg.io.file_names import case_and_channel
from nnunet_hrmedseg.io.files import read_json
from nnunet_hrmedseg.io.image_formats import SUFFIXES
from nnunet_hrmedseg.io.raw_cases import IMAGE_SOURCES, find_raw_cases, find_reader_by_trying, resolve_source
from nnunet_hrmedseg.io.skipped import SHOWN, is_hidden
from nnunet_hrmedseg.io.stored_images import (
    CaseFiles,
    ImageFile,
    RawSlice,
    StoredImage,
    TarMember,
    describe_read_error,
    file_state,
    number_of_slices,
    safe_path_str,
)

__all__ = ["ImageCollection", "find_images"]


@dataclass(frozen=True)
class ImageCollection(Sequence["StoredImage"]):
    """Images in the order of their names, whatever order the sources were given in.

    Attributes:
        images: where each image lies.
        counts: how many of them each source gave; an image that several sources hold counts for the first.
        faults: sentences on what was left out because it could not be listed, such as the rest of a truncated tar.
    """

    images: list[StoredImage]
    counts: dict[str, int]
    faults: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> StoredImage:  # type: ignore[override]
        return self.images[index]

    @property
    def identities(self) -> list[str]:
        """One string for each image that changes whenever its file does."""
        return [image.identity for image in self.images]


def find_images(sources: Sequence[str | Path], *, limit: int | None = None) -> ImageCollection:
    """Find the images of all sources, each image once.

    Args:
        sources: folders (searched with all folders in them, where nnU-Net raw datasets and SA-1B's `sa_*.tar` are
            recognized), image files, tar files, nnU-Net raw datasets (folder, name or number in nnUNet_raw).
        limit: Maximum number of images, selected by a hash of their names: a larger limit adds to a smaller one.

    Raises:
        DataError: A source that does not exist or is of no known kind; no image at all.
    """
    if limit is not None and limit < 1:
        raise PlanError(f"The number of images is limited to {limit}; it must be at least 1.")
    found: dict[str, tuple[StoredImage, str]] = {}
    faults: list[str] = []
    for source in dict.fromkeys(sources):
        empty = True
        others: list[str] = []
        for image in _images_of(resolve_source(source), faults, others):
            found.setdefault(image.identity, (image, str(source)))
            empty = False
        if others:
            faults.append(
                f"{source}: {len(others):,} other files are skipped: "
                f"{format_names(list(map(safe_path_str, others)), SHOWN)}"
            )
        if empty:
            faults.append(f"{source}: no image was found there")
    if not found:
        raise DataError(
            f"No image was found in {format_names(list(map(str, sources))) or 'no source'}. "
            f"Sources can be: {IMAGE_SOURCES}." + "".join(f"\n  - {fault}" for fault in faults)
        )
    chosen = list(found.values())
    if limit is not None:
        chosen = sorted(chosen, key=lambda entry: sha256(entry[0].name.encode()).digest())[:limit]
    chosen.sort(key=lambda entry: entry[0].identity)
    counts = dict(Counter(source for _, source in chosen))
    return ImageCollection([image for image, _ in chosen], counts, list(dict.fromkeys(faults)))


# These functions yield images. They append sentences to `faults`, and to `others` the names of files of other kinds.


def _images_of(path: Path, faults: list[str], others: list[str]) -> Iterator[StoredImage]:
    if path.is_dir():
        yield from _images_in_folder(path, faults, others)
    elif path.suffix.lower() == ".tar":
        yield from _images_in_tar(str(path), faults, others)
    elif path.suffix.lower() in SUFFIXES:
        yield from _image_file(str(path), faults)
    else:
        raise DataError(f"{path} is not a file that images are read from. A source may be {IMAGE_SOURCES}.")


def _images_in_folder(folder: Path, faults: list[str], others: list[str]) -> Iterator[StoredImage]:
    visited = set()
    walk = os.walk(folder, followlinks=True, onerror=lambda e: faults.append(f"{e.filename}: {e.strerror}, left out"))
    for parent, folders, files in walk:
        parent = os.path.realpath(parent)
        if parent in visited:  # a link that leads back up would never end
            folders.clear()
            continue
        visited.add(parent)
        dataset_json = _dataset_json(Path(parent)) if "dataset.json" in files else None
        if dataset_json is not None:
            folders.clear()
            yield from _images_in_raw_dataset(Path(parent), dataset_json, faults, others)
            continue
        others += [f"{name}/" for name in sorted(folders) if is_hidden(name)]
        folders[:] = [name for name in folders if not is_hidden(name)]
        shards = [name for name in files if re.fullmatch(r"sa_.*\.tar", name, re.IGNORECASE)]
        others += _no_images([name for name in files if name not in shards])
        for name in files:
            file = os.path.join(parent, name)
            if _is_image_name(name):
                yield from _image_file(file, faults)
            elif name in shards:
                yield from _images_in_tar(os.path.realpath(file), faults, others)


def _image_file(file: str, faults: list[str]) -> Iterator[StoredImage]:
    file = os.path.realpath(file)
    with _left_out(file, faults):
        yield ImageFile(file, file_state(file))


def _no_images(names: Sequence[str]) -> list[str]:
    """Return the names that are not of images, in order; SA-1B's .json beside an image of its name belongs to it."""
    stems = {os.path.splitext(name)[0] for name in names if _is_image_name(name)}
    rest = [name for name in names if not _is_image_name(name)]
    return sorted(name for name in rest if not (name.endswith(".json") and name.removesuffix(".json") in stems))


def _images_in_tar(tar: str, faults: list[str], others: list[str]) -> Iterator[StoredImage]:
    """Yield the images that are complete in a tar file, by the offsets of their bytes: nothing is extracted."""
    members = []
    with _left_out(tar, faults, what="what lies behind that is left out"):
        state, end, last = file_state(tar), os.path.getsize(tar), -1
        with tarfile.open(tar, "r:", errors="backslashreplace") as archive:
            for member in archive:
                if member.offset <= last:
                    raise DataError(f"a header at byte {last} leads back to byte {member.offset}")
                last = member.offset
                if member.size < 0:
                    raise DataError(f"{member.name} has a size below 0, at byte {member.offset}")
                if member.offset_data + member.size > end:
                    raise DataError(f"it is truncated in {member.name}, at byte {end}")
                path = PurePosixPath(member.name)
                members += [] if member.isdir() else [member.name]
                is_plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
                if is_plain and _is_image_name(path.name) and not path.is_absolute() and ".." not in path.parts:
                    yield TarMember(tar, state, member.name, member.offset_data, member.size)
        others += [f"{os.path.basename(tar)}!{name}" for name in _no_images(members)]
        # tarfile takes a damaged or cut header for the end; the real end is a block of zeros
        with open(tar, "rb") as file:
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise DataError(f"it is truncated or damaged at byte {archive.offset}")


def _dataset_json(folder: Path) -> dict[str, Any] | None:
    """Return the dataset.json of an nnU-Net raw dataset; None if the folder is not a dataset."""
    try:
        content = read_json(folder / "dataset.json")
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / 'dataset.json'} cannot be read ({error}). Correct or remove it.") from error
    if not isinstance(content, dict) or not (
        (folder / "imagesTr").is_dir() or {"dataset", "file_ending"} <= set(content)
    ):
        return None
    if not isinstance(content.get("file_ending"), str):
        raise DataError(
            f"{folder} looks like a dataset of nnU-Net v1: its dataset.json has no file_ending. Convert it with "
            f"nnUNetv2_convert_MSD_dataset or nnUNetv2_convert_old_nnUNet_dataset."
        )
    return content


def _images_in_raw_dataset(
    folder: Path, dataset_json: dict[str, Any], faults: list[str], others: list[str]
) -> Iterator[StoredImage]:
    ending = dataset_json["file_ending"]
    if "dataset" in dataset_json:
        cases = _listed_files(folder, dataset_json)
    else:
        cases = _channel_files(folder / "imagesTr", ending, faults, others)
    cases += _channel_files(folder / "imagesTs", ending, faults, others)
    reader = find_reader_by_trying(folder, dataset_json, cases)
    for files in cases:
        with _left_out(files[0], faults):
            case = CaseFiles.of(files, reader)
            slices = number_of_slices(case)
            yield from (RawSlice(case, None if slices == 1 else i) for i in range(slices))


def _listed_files(folder: Path, dataset_json: dict[str, Any]) -> list[list[str]]:
    """Return the image files of each case that dataset.json lists, with or without labels."""
    listed = dataset_json["dataset"]
    if isinstance(listed, dict):
        # a file that is there stands for every label: of cases without a single label `find_raw_cases` says nothing
        stand_in = {"label": "dataset.json"}
        listed = {name: {**case, **stand_in} if isinstance(case, dict) else case for name, case in listed.items()}
    found = find_raw_cases(folder, {**dataset_json, "dataset": listed}) or {}
    return [case.images for case in found.values() if case.images]


def _channel_files(folder: Path, ending: str, faults: list[str], others: list[str]) -> list[list[str]]:
    """Return the files of each case, CASE_0000, CASE_0001, ..."""
    cases: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
        if not name.endswith(ending) or is_hidden(name):
            others.append(f"{folder.name}/{name}")
        else:
            named = case_and_channel(name, ending)
            if named is None:
                faults.append(f"{folder / name}: no channel number in its name (CASE_0000{ending}), left out")
            else:
                cases.setdefault(named[0], []).append(str(folder / name))
    return list(cases.values())


@contextmanager
def _left_out(file: str, faults: list[str], what: str = "left out") -> Iterator[None]:
    """Turn an error into a sentence in `faults`: one unreadable file must not hide all others."""
    try:
        yield
    except Exception as error:
        faults.append(f"{safe_path_str(file)}: {describe_read_error(error)}; {what}")


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not is_hidden(name.rpartition("/")[2])
