"""The raw cases of a dataset: its folder, the files of each case, and nnU-Net's reader for them."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Collection, Iterable
from contextlib import redirect_stderr, redirect_stdout, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_hrmedseg.errors import DataError, PlanError, format_names
from nnunet_hrmedseg.io.file_names import case_and_channel
from nnunet_hrmedseg.io.files import read_json_object
from nnunet_hrmedseg.io.image_formats import SUFFIXES
from nnunet_hrmedseg.io.skipped import describe_skipped, find_unused, is_hidden
from nnunet_hrmedseg.nnunet_versions import nnunet_folder

__all__ = [
    "IMAGE_SOURCES",
    "RawCase",
    "check_training_names",
    "describe_unused_files",
    "find_raw_cases",
    "find_reader",
    "find_reader_by_trying",
    "read_dataset_json",
    "refuse_label_names",
    "resolve_source",
]


IMAGE_SOURCES = (
    f"images ({', '.join(SUFFIXES)}) in a folder and all folders in it, SA-1B shards (sa_*.tar), or an nnU-Net raw "
    f"dataset (a folder with dataset.json and imagesTr; or its name or number in nnUNet_raw)"
)
"""Places that images are read from, for messages."""


class RawCase(NamedTuple):
    """The files of one training case in nnUNet_raw: one image file per channel (or one RGB file), and the labels."""

    images: list[str]
    label: str


def find_raw_cases(raw_folder: Path | None, dataset_json: dict[str, Any]) -> dict[str, RawCase] | None:
    """Return the training cases of `nnUNet_raw/<dataset>` by name, or None if they cannot be found.

    Raises:
        DataError: a file in imagesTr whose name has no channel number; a list of files that nnU-Net does not read.
    """
    if raw_folder is None or not raw_folder.is_dir():
        return None
    if "dataset" in dataset_json:
        try:
            listed = get_filenames_of_train_images_and_targets(str(raw_folder), deepcopy(dataset_json))
            cases = {name: RawCase([*files["images"]], files["label"]) for name, files in listed.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f'"dataset" in the dataset.json of {raw_folder} is not what nnU-Net reads ({type(error).__name__}: '
                f'{error}). It should be {{CASE: {{"images": [FILE, ...], "label": FILE}}, ...}}, or not be there.'
            ) from error
        return cases if any(os.path.isfile(case.label) for case in cases.values()) else None

    # not by nnU-Net's own function: it starts twelve processes to do this
    ending = dataset_json["file_ending"]
    images_folder, labels_folder = raw_folder / "imagesTr", raw_folder / "labelsTr"
    cases = {}
    for file in sorted(os.listdir(images_folder)) if images_folder.is_dir() else []:
        if not file.endswith(ending) or is_hidden(file):
            continue
        named = case_and_channel(file, ending)
        if named is None:
            raise DataError(
                f"{images_folder / file} has no channel number in its name. nnU-Net expects CASE_0000{ending}, "
                f"CASE_0001{ending}, ... for the channels of a case."
            )
        name, _ = named
        case = cases.setdefault(name, RawCase([], str(labels_folder / f"{name}{ending}")))
        case.images.append(str(images_folder / file))
    return cases or None


def check_training_names(
    cases: Iterable[tuple[str, Path]], remedy: str = "Rename these images and their masks."
) -> None:
    """Check that nnU-Net will train with new cases of these names, given as pairs of name and image.

    Raises:
        DataError: a name ends in _seg; `remedy` says what to do.
    """
    labels = sorted(file.name for name, file in cases if name.endswith("_seg"))
    if labels:
        raise DataError(
            f"Names of images must not end in _seg: {format_names(labels)}. nnU-Net would treat them as labels and not "
            f"train with them. {remedy}"
        )


def refuse_label_names(cases: Iterable[str]) -> None:
    """Refuse case names that nnU-Net takes for the preprocessed labels of another case.

    Raises:
        DataError: a name ends in _seg.
    """
    names = [name for name in cases if name.endswith("_seg")]
    if names:
        raise DataError(
            f"Names of cases must not end in _seg: {format_names(names)}. nnU-Net takes their preprocessed images for "
            f"labels of other cases, and would neither train nor validate with them. Rename their files in imagesTr "
            f"and labelsTr (and, if it lists them, in dataset.json), for example to {names[0].removesuffix('_seg')}_s."
        )


def describe_unused_files(folder: Path, cases: Collection[RawCase], test: bool = False) -> list[str]:
    """Return sentences that name what is in the folders of images and labels, but in no case.

    Args:
        folder: of the raw dataset.
        cases: all that are used.
        test: imagesTs and labelsTs, not imagesTr and labelsTr.
    """
    used = [file for case in cases for file in (*case.images, case.label)]
    places = [folder / f"{kind}{'Ts' if test else 'Tr'}" for kind in ("images", "labels")]
    sentences = (describe_skipped(place, find_unused(place, used)) for place in places if place.is_dir())
    return [sentence for of_place in sentences for sentence in of_place]


def read_dataset_json(file: Path) -> dict[str, Any]:
    """Read a dataset.json, and check that it has labels and a file ending.

    Raises:
        PlanError: the file cannot be read, or lacks one of them.
    """
    content = read_json_object(file, "dataset.json of nnU-Net", PlanError)
    for name, kind in (("file_ending", str), ("labels", dict)):
        if not isinstance(content.get(name), kind) or not content[name]:
            raise PlanError(
                f"{file} is no dataset.json of nnU-Net v2: its {name} is {content.get(name)!r:.100}. Correct the file, "
                f"see nnU-Net's documentation/dataset_format.md."
            )
    return content


def find_reader(dataset_json: dict[str, Any], example: str | None = None) -> type[BaseReaderWriter]:
    """Return nnU-Net's reader for the images of a dataset. nnU-Net itself takes any object of the given name.

    Args:
        dataset_json: the content of dataset.json.
        example: one of the images, by which nnU-Net tells images and volumes in .tif apart, and NIfTI that SimpleITK
            does not read.

    Raises:
        RuntimeError: there is none.
    """
    try:
        with redirect_stderr(io.StringIO()):  # it prints the traceback of each reader that does not fit
            reader = determine_reader_writer_from_dataset_json(dataset_json, example, verbose=False)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RuntimeError(f"dataset.json names none ({error})") from error
    if not (isinstance(reader, type) and issubclass(reader, BaseReaderWriter)):
        raise RuntimeError(f"{dataset_json.get('overwrite_image_reader_writer')} is none")
    return reader


def resolve_source(source: str | Path) -> Path:
    """Return the existing file or folder without symbolic links, so that each file has a single name."""
    path = Path(source).expanduser()
    is_number = isinstance(source, str) and re.fullmatch("[0-9]+", source)
    if is_number or (re.fullmatch(r"Dataset\d{3,}_[^/\\]+", str(source)) and not path.exists()):
        path = _in_nnunet_raw(str(source))
    if not path.exists():
        raise DataError(f"The image source {source} does not exist. A source may be {IMAGE_SOURCES}.")
    return path.resolve()


def _in_nnunet_raw(name_or_number: str) -> Path:
    raw = nnunet_folder("nnUNet_raw")
    if raw is None:
        raise DataError(
            f"{name_or_number} is taken for an nnU-Net dataset, but the environment variable nnUNet_raw is not set. "
            f"Set it, or give the path of the dataset's folder."
        )
    is_number = name_or_number.isdecimal()
    named = Path(raw).glob(f"Dataset{int(name_or_number):03d}_*") if is_number else [Path(raw, name_or_number)]
    found = sorted(folder for folder in named if folder.is_dir())
    if len(found) != 1:
        what = "several datasets" if found else "no dataset"
        names = f" ({', '.join(folder.name for folder in found)})" if found else ""
        raise DataError(f"There is {what} for {name_or_number} in nnUNet_raw ({raw}){names}. Give a folder's path.")
    return found[0]


def find_reader_by_trying(folder: Path, dataset_json: dict[str, Any], cases: list[list[str]]) -> type[BaseReaderWriter]:
    # nnU-Net has two readers for .tif, of images and of volumes, and two for NIfTI, of which SimpleITK refuses some
    # affines; it tells by trying, and the first files may be broken
    ending = dataset_json["file_ending"].lower()
    is_told_by_trying = ending in Tiff3DIO.supported_file_endings or ending in NibabelIO.supported_file_endings
    for example in [*(files[0] for files in cases[:5] if is_told_by_trying), None]:
        with suppress(RuntimeError), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return find_reader(dataset_json, example)
    raise DataError(f"nnU-Net has no reader for the images of {folder}: file_ending is {dataset_json['file_ending']}")
