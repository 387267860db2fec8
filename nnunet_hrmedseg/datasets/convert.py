"""Convert new images to the format of a dataset's images, so that its models predict them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hrmedseg_onnx.photos import fit_channels
from nnunet_hrmedseg.datasets.matching import NO_IMAGES, case_names, list_images
from nnunet_hrmedseg.datasets.pixels import read_image
from nnunet_hrmedseg.datasets.writing import write_image
from nnunet_hrmedseg.errors import DataError, HRMedSegError, PlanError, SetupError, format_names
from nnunet_hrmedseg.io.dicom import SUFFIXES as DICOM_SUFFIXES
from nnunet_hrmedseg.io.files import check_output_dir
from nnunet_hrmedseg.io.new_dataset import building_directory, check_keeps_inputs
from nnunet_hrmedseg.io.raw_cases import read_dataset_json
from nnunet_hrmedseg.nnunet_versions import full_dataset_name, nnunet_folder

__all__ = ["ConvertedImages", "convert_images"]

WRITTEN = (".png", ".tif", ".tiff", ".bmp", ".dcm")


@dataclass(frozen=True)
class ConvertedImages:
    """Images that nnUNetv2_predict reads.

    Attributes:
        folder: of the images.
        cases: name of each case -> the original file.
        skipped: files that are not images.
    """

    folder: Path
    cases: dict[str, Path]
    skipped: list[Path]


def convert_images(
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    dataset: str | int,
    link: bool = False,
    overwrite: bool = False,
) -> ConvertedImages:
    """Write new images as `make_dataset` wrote those of a dataset: same format, channels and orientation.

    All images are checked before anything is written, and the output is complete or does not exist.

    Args:
        images: folder of images, searched recursively.
        output: folder for the converted images, CASE_0000.png, ..., the input of nnUNetv2_predict.
        dataset: name or number of the dataset of the model.
        link: hard-link image files that nnU-Net can read as they are, instead of copying them.
        overwrite: replace an output folder that holds only converted images.

    Raises:
        DataError: images that cannot be read or do not fit the dataset, all in one message.
        PlanError: an unknown dataset, or one of other images than 2D images in one file.
        SetupError: the output exists, or holds other files.

    Examples:
        >>> import json
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from nnunet_hrmedseg import convert_images
        >>> dataset = Path("nnUNet_raw/Dataset012_Cells")  # as written by make_dataset
        >>> dataset.mkdir()
        >>> content = {"channel_names": {"0": "gray"}, "labels": {"background": 0, "cell": 1}, "file_ending": ".png"}
        >>> _ = (dataset / "dataset.json").write_text(json.dumps(content))
        >>> Path("photos").mkdir()
        >>> Image.new("L", (64, 48)).save("photos/IMG 7.jpg")
        >>> convert_images("photos", "images_to_predict", dataset=12).cases
        {'IMG 7': ...Path('photos/IMG 7.jpg')}
    """
    name = full_dataset_name(dataset)
    ending, channels = _format(name)
    images, output = Path(images), Path(output)
    if output.exists() and not overwrite:
        raise SetupError(f"{output} exists already. Choose another folder, or replace it with --overwrite.")
    check_keeps_inputs(output, [images])
    _check_replaceable(output, ending)
    check_output_dir(output.resolve().parent)
    files, skipped = list_images(images)
    files = [file for file in files if not file.resolve().is_relative_to(output.resolve())]
    if not files:
        raise DataError(f"{images} {NO_IMAGES}")
    cases = case_names(files, images)
    errors = []
    for file in tqdm(cases.values(), desc="Reading", unit="image", leave=False, disable=None):
        try:
            _check(file, read_image(file), ending, channels, name)
        except HRMedSegError as error:
            errors.append(str(error))
    if errors:
        listed = "\n  ".join(errors)
        raise DataError(f"{len(errors)} of {len(cases)} images cannot be used; nothing was written:\n  {listed}")
    with building_directory(output, overwrite=overwrite) as incomplete:
        for case, file in tqdm(cases.items(), desc="Writing", unit="image", leave=False, disable=None):
            write_image(incomplete / f"{case}_0000{ending}", file, read_image(file), len(channels), link=link)
    return ConvertedImages(output, cases, skipped)


def _check_replaceable(output: Path, ending: str) -> None:
    """Raise SetupError if the output exists and is not a folder of converted images alone."""
    inside = sorted(output.iterdir()) if output.is_dir() else [output] if output.exists() else []
    others = [file.name for file in inside if not file.name.endswith(f"_0000{ending}")]
    if others:
        raise SetupError(
            f"{output} is not replaced, because it holds other files than converted images: {format_names(others)}. "
            f"Choose another folder."
        )


def _format(name: str) -> tuple[str, list[str]]:
    """Return file ending and names of the channels, one or three, of the images of a dataset.

    Raises:
        PlanError: they are not 2D images in one file each.
    """
    description = _description(name)
    ending, channels = description["file_ending"], list(description["channel_names"].values())
    if ending not in WRITTEN:
        raise PlanError(
            f"The images of {name} end in {ending}, but this command writes {format_names(list(WRITTEN))}. Save the "
            f"new images as {ending} with the program that saved those of the dataset."
        )
    raw = nnunet_folder("nnUNet_raw")
    in_files = raw is not None and any(Path(raw, name, "imagesTr").glob(f"*_0001{ending}"))
    if in_files or len(channels) not in (1, 3):
        raise PlanError(
            f"The {len(channels)} channels of {name} are in separate files (_0000, _0001, ...). This command converts "
            f"images of one file, gray or RGB."
        )
    return ending, channels


def _description(name: str) -> dict[str, Any]:
    folders = {place: nnunet_folder(place) for place in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for place, folder in folders.items():
        pattern = "*/dataset.json" if place == "nnUNet_results" else "dataset.json"
        for file in sorted(Path(folder, name).glob(pattern)) if folder else []:
            return read_dataset_json(file)
    raise PlanError(f"There is no dataset.json of {name} in {format_names(list(folders))}.")


def _check(file: Path, pixels: np.ndarray, ending: str, channels: Sequence[str], name: str) -> None:
    """Check that an image can be written in the format of the dataset without loss.

    Raises:
        DataError: it cannot.
    """
    if ending == ".dcm":
        if not file.name.lower().endswith(DICOM_SUFFIXES):
            raise DataError(f"{file} is not DICOM, but the images of {name} are.")
        return
    fit_channels(np.moveaxis(np.atleast_3d(pixels), -1, 0), channels, file)
    holds = {".png": ("uint8",) if len(channels) == 3 else ("uint8", "uint16"), ".bmp": ("uint8",)}.get(ending)
    if holds and str(pixels.dtype) not in holds:
        raise DataError(
            f"{file} has values of the type {pixels.dtype}, but the images of {name} are {ending} files, which nnU-Net "
            f"reads as {format_names(list(holds))}. Scale it as the images of the dataset were scaled."
        )
