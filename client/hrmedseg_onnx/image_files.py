"""Reading of images and writing of label maps as nnU-Net does: Pillow, tifffile, SimpleITK, nibabel and pydicom."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hrmedseg_onnx.dicom import PACKAGES as DICOM_PACKAGES
from hrmedseg_onnx.dicom import SUFFIXES as DICOM_SUFFIXES
from hrmedseg_onnx.dicom import read_dicom
from hrmedseg_onnx.dicom_seg import write_label_map as write_dicom_seg
from hrmedseg_onnx.errors import DataError, HRMedSegError, SetupError, format_shape
from hrmedseg_onnx.file_kinds import recognize_file
from hrmedseg_onnx.file_names import case_and_channel
from hrmedseg_onnx.files import atomic_path_same_name, read_json
from hrmedseg_onnx.json_values import is_list, is_number
from hrmedseg_onnx.photos import PHOTO_SUFFIXES, fit_channels, is_photo, open_image, read_photo

__all__ = [
    "DICOM_READER",
    "PICTURE_READER",
    "Image",
    "files_read",
    "files_written",
    "package_needed",
    "read_image",
    "readable_endings",
    "write_label_map",
]

Geometry = dict[str, Any]

PICTURE_READER = "NaturalImage2DIO"
DICOM_READER = "HRMedSegDicomIO"
"""The reader of nnunet_hrmedseg."""

DATA_OF_HEADERS = {".mhd": (".raw", ".zraw"), ".nhdr": (".raw", ".raw.gz")}
"""Ending of a header file -> possible endings of the file with its pixels."""


@dataclass
class Image:
    """The image of a case.

    Attributes:
        data: (C, Z, Y, X) float32; a picture has one slice.
        geometry: properties that the label map inherits from the image file, such as spacing; empty for pictures.
    """

    data: np.ndarray
    geometry: Geometry


def readable_endings(reader: str) -> tuple[str, ...]:
    """Return the file endings that can be read in place of nnU-Net's reader of this name."""
    return _READERS[reader].endings


def package_needed(reader: str) -> str:
    """Return the package that this reader needs in addition to numpy, Pillow and tifffile, or an empty string."""
    return _READERS[reader].needs


def files_read(file: Path, reader: str) -> list[Path]:
    """Return the files that are read for an image file: itself, and files beside it with pixels or spacing."""
    if reader == "Tiff3DIO":
        return [file, *_spacing_files(file)]
    data = [file.with_suffix(ending) for ending in DATA_OF_HEADERS.get(file.suffix.lower(), ())]
    return [file, *(beside for beside in data if beside.is_file())]


def files_written(file: Path, reader: str) -> list[Path]:
    """Return the files that are written for a label map: itself, and a file with its spacing if the reader has one."""
    return [file, file.with_suffix(".json")] if reader == "Tiff3DIO" else [file]


def read_image(files: Sequence[Path], reader: str, channel_names: Sequence[str] = ()) -> Image:
    """Read the files of one case, in the order of its channels.

    Args:
        files: one file for each channel, or one with all channels.
        reader: nnU-Net's name of the reader, a key of `_READERS`.
        channel_names: names of the model's channels, which photos are fitted to; see `fit_channels`.

    Raises:
        DataError: a file is missing, cannot be read, differs from the first one in shape or spacing, or is a photo with
            other channels.
        SetupError: a package that the reader needs is missing.
    """
    channels: list[np.ndarray] = []
    geometries: list[Geometry] = []
    for number, file in enumerate(files):
        if not file.is_file():
            raise DataError(f"{file} does not exist.")
        try:
            _check_gzip(file)
            data, geometry = _READERS[reader].read(file)
        except HRMedSegError:
            raise
        except Exception as error:
            raise DataError(f"{file} cannot be read: {_reason(file, error)}.") from error
        if channel_names and reader == PICTURE_READER and is_photo(file):
            data = fit_channels(data, channel_names if len(files) == 1 else channel_names[number : number + 1], file)
        if channels and data.shape[1:] != channels[0].shape[1:]:
            raise DataError(
                f"The channels differ in size: {files[0]} has {format_shape(channels[0].shape[1:])}, {file} has "
                f"{format_shape(data.shape[1:])} (slices x rows x columns). All files of a case must have the same "
                f"size."
            )
        if geometries and geometry.get("spacing") != geometries[0].get("spacing"):
            raise DataError(
                f"The channels differ in spacing: {files[0]} has {geometries[0]['spacing']}, {file} has "
                f"{geometry['spacing']}. All files of a case must have the same spacing."
            )
        channels.append(data)
        geometries.append(geometry)
    return Image(np.concatenate(channels, dtype=np.float32, casting="unsafe"), geometries[0])


def _check_gzip(file: Path) -> None:
    """Raise an error if a compressed file is cut off or damaged: SimpleITK reads zeros for what is missing."""
    if file.name.lower().endswith(".gz"):
        with open(file, "rb") as stream:
            compressed = stream.read(2) == b"\x1f\x8b"
        if compressed:
            with gzip.open(file) as unpacked:
                while unpacked.read(1 << 24):
                    pass


def _reason(file: Path, error: Exception) -> str:
    """Return why a file cannot be read: that it is another kind of file, with advice, or the error of the reader."""
    kind = recognize_file(file) or ""
    if ":" in kind and not (kind.startswith("packed with gzip") and file.name.lower().endswith(".gz")):
        return f"it is {kind}"
    text = " ".join(str(error).split())
    return f"{re.sub(r'^Exception thrown in SimpleITK .*?ERROR: ', '', text)} ({type(error).__name__})"


def write_label_map(
    labels: np.ndarray, file: Path, reader: str, geometry: Geometry, names: Mapping[int, str] | None = None
) -> None:
    """Write labels (Z, Y, X) with the geometry of the image, as 8 bits if possible, else 16; atomically.

    Args:
        labels: values of the classes.
        file: the file to write.
        reader: nnU-Net's name of the reader, a key of `_READERS`.
        geometry: of the image.
        names: label value -> name of the class, which DICOM files have.
    """
    if reader == DICOM_READER:
        geometry = {**geometry, "class_names": names}
    labels = labels.astype(np.uint8 if labels.max() < 255 else np.uint16, copy=False)
    with atomic_path_same_name(file) as temporary:
        _READERS[reader].write(labels, temporary, geometry)


def _read_picture(file: Path) -> tuple[np.ndarray, Geometry]:
    """Read as NaturalImage2DIO: PNG, BMP, 2D TIFF; gray, RGB or RGBA. Photos and DICOM images replace such files."""
    if file.suffix.lower() in DICOM_SUFFIXES:
        data, _ = _read_dicom(file)
        if data.shape[1] == 1:
            return data, {}
        raise DataError(
            f"{file} is a video of {data.shape[1]} frames, and the label map of a picture has one. Add --dicom_seg, to "
            f"write a DICOM SEG with the frames of the video."
        )
    if is_photo(file):
        pixels = read_photo(file)
    elif file.suffix.lower() in (".tif", ".tiff"):
        pixels = _read_tiff(file)
    else:
        pixels = _read_with_pillow(file)
    if pixels.ndim > 2 and pixels.shape[-1] not in (3, 4) and pixels.shape[-3] in (3, 4):
        pixels = np.moveaxis(pixels, -3, -1)
    if pixels.ndim == 2:
        return pixels[None, None], {}
    if pixels.ndim == 3 and pixels.shape[-1] in (3, 4):
        return np.moveaxis(pixels, -1, 0)[:, None], {}
    raise DataError(
        f"{file} has the shape {' x '.join(map(str, pixels.shape))}; a picture has rows x columns, with 3 or 4 color "
        f"channels behind them or none. Save it as a gray or RGB image."
    )


def _write_picture(labels: np.ndarray, file: Path, _geometry: Geometry) -> None:
    if file.suffix.lower() in (".tif", ".tiff"):
        import tifffile

        tifffile.imwrite(file, labels[0], photometric="minisblack")
    else:
        import PIL.Image

        PIL.Image.fromarray(labels[0]).save(file)


def _read_with_pillow(file: Path) -> np.ndarray:
    with open_image(file) as image:
        if image.mode == "P" and image.palette is not None:
            return np.asarray(image.convert(image.palette.mode))
        return np.asarray(image)


def _read_tiff(file: Path) -> np.ndarray:
    import tifffile

    return tifffile.imread(file)


def _read_tiff_volume(file: Path) -> tuple[np.ndarray, Geometry]:
    """Read as Tiff3DIO: the spacing, if known, is in CASE.json beside CASE_0000.tif or CASE.tif."""
    pixels = _read_tiff(file)
    if pixels.ndim != 3:
        raise DataError(f"{file} has {pixels.ndim} axes; the model was trained with TIFF volumes of three.")
    beside = _spacing_files(file)
    return pixels[None], {"spacing": _spacing(beside[0]) if beside else [1, 1, 1]}


def _spacing(file: Path) -> list[float]:
    try:
        content = read_json(file)
    except ValueError as error:
        raise DataError(f"{file}, with the spacing of an image, is not valid JSON ({error}). Correct it.") from None
    spacing: Any = content.get("spacing") if isinstance(content, dict) else None
    if not (is_list(spacing, is_number) and len(spacing) == 3):
        raise DataError(
            f'{file} must hold the spacing of an image as {{"spacing": [Z, Y, X]}}, three numbers in mm; its spacing '
            f"is {spacing!r}. Correct it."
        )
    return spacing


def _spacing_files(file: Path) -> list[Path]:
    """Return the existing files with spacing: CASE.json, then one with the whole name of the image."""
    case, _ = case_and_channel(file.stem) or (file.stem, 0)
    names = dict.fromkeys((case, file.stem))
    return [place for name in names if (place := file.with_name(f"{name}.json")).is_file()]


def _write_tiff_volume(labels: np.ndarray, file: Path, geometry: Geometry) -> None:
    import tifffile

    tifffile.imwrite(file, labels, compression="zlib")
    file.with_suffix(".json").write_text(json.dumps(geometry))


def _read_volume(file: Path) -> tuple[np.ndarray, Geometry]:
    """Read as SimpleITKIO: axes (z, y, x), before them the channels if the file has four axes."""
    try:
        image = _simpleitk().ReadImage(str(file))
    except RuntimeError as error:
        if "orthonormal" not in str(error):
            raise
        raise DataError(
            f"{file} has an affine whose axes are not at right angles, which SimpleITK does not read. The model was "
            f"trained with SimpleITK as its reader, so nnU-Net cannot predict this image either. Resample it, or, if "
            f"its qform is right, write that over the sform (in nibabel: image.set_sform(image.get_qform()))."
        ) from error
    pixels = _simpleitk().GetArrayFromImage(image)
    _check_volume(file, pixels.shape, image.GetNumberOfComponentsPerPixel())
    first = image[:, :, :, 0] if pixels.ndim == 4 else image
    geometry = {"spacing": first.GetSpacing(), "origin": first.GetOrigin(), "direction": first.GetDirection()}
    return _with_channels(pixels), geometry


def _check_volume(file: Path, shape: Sequence[int], components: int = 1) -> None:
    if components > 1 or len(shape) not in (2, 3, 4):
        raise DataError(
            f"{file} has the shape {format_shape(shape)}; an image or a volume is needed, with the channels of a "
            f"volume as its fourth axis, not as a vector for each voxel. Save each channel as a file of its own: "
            f"CASE_0000, CASE_0001, ..."
        )


def _with_channels(pixels: np.ndarray) -> np.ndarray:
    """Return (C, Z, Y, X) for (Y, X), (Z, Y, X) or (C, Z, Y, X)."""
    return pixels.reshape((1,) * (4 - pixels.ndim) + pixels.shape)


def _write_volume(labels: np.ndarray, file: Path, geometry: Geometry) -> None:
    image = _simpleitk().GetImageFromArray(labels[0] if len(geometry["spacing"]) == 2 else labels)
    image.SetSpacing(geometry["spacing"])
    image.SetOrigin(geometry["origin"])
    image.SetDirection(geometry["direction"])
    _simpleitk().WriteImage(image, str(file), True)


def _read_nifti(file: Path) -> tuple[np.ndarray, Geometry]:
    """Read as NibabelIO, which nnU-Net uses if SimpleITK rejects the affine: axes as of `_read_volume`."""
    nibabel = _nibabel()
    if nibabel is None or not file.name.lower().endswith(NIFTI):
        return _read_nifti_with_simpleitk(file)
    image = nibabel.load(file)
    _check_volume(file, image.shape)
    geometry = {"spacing": tuple(map(float, image.header.get_zooms()[:3])), "affine": image.affine}
    return _with_channels(image.get_fdata().transpose()), geometry


def _read_nifti_with_simpleitk(file: Path) -> tuple[np.ndarray, Geometry]:
    """Read with SimpleITK, which gives the same values for files with an orthonormal affine."""
    try:
        return _read_volume(file)
    except HRMedSegError as error:
        if _nibabel() is not None or not file.name.lower().endswith(NIFTI):
            raise
        raise SetupError(
            f"{file} cannot be read without nibabel, the reader that the model was trained with: pip install nibabel"
        ) from error


def _write_nifti(labels: np.ndarray, file: Path, geometry: Geometry) -> None:
    nibabel = _nibabel()
    if nibabel is None or "affine" not in geometry:
        _write_volume(labels, file, geometry)
        return
    pixels = labels[0] if len(geometry["spacing"]) == 2 else labels
    nibabel.save(nibabel.Nifti1Image(pixels.transpose(), affine=geometry["affine"]), file)


def _read_dicom(file: Path) -> tuple[np.ndarray, Geometry]:
    """Read as HRMedSegDicomIO of nnunet_hrmedseg: a channel for gray values, three for colors; frames are slices."""
    return read_dicom(file).channels, {"dicom_source": file}


def _write_dicom(labels: np.ndarray, file: Path, geometry: Geometry) -> None:
    write_dicom_seg(labels, file, geometry["dicom_source"], geometry.get("class_names"))


def _nibabel() -> Any:
    """Return the package, or None if it is not installed."""
    try:
        import nibabel
    except ImportError:
        return None
    return nibabel


def _simpleitk() -> Any:
    try:
        import SimpleITK
    except ImportError:
        raise SetupError(
            "The model was trained with volumes (NIfTI and the like), which SimpleITK reads: pip install SimpleITK"
        ) from None
    return SimpleITK


@dataclass(frozen=True)
class _Reader:
    """Functions that read an image as (C, Z, Y, X) and a geometry, and write a label map (Z, Y, X)."""

    read: Callable[[Path], tuple[np.ndarray, Geometry]]
    write: Callable[[np.ndarray, Path, Geometry], None]
    endings: tuple[str, ...]
    needs: str = ""  # additional package


NIFTI = (".nii.gz", ".nii")
_PICTURES = (".png", ".bmp", ".tif", ".tiff", *PHOTO_SUFFIXES, *DICOM_SUFFIXES)
_VOLUMES = (*NIFTI, ".nrrd", ".mha", ".mhd", ".gipl")
_READERS = {
    PICTURE_READER: _Reader(_read_picture, _write_picture, _PICTURES),
    DICOM_READER: _Reader(_read_dicom, _write_dicom, DICOM_SUFFIXES, DICOM_PACKAGES),
    "Tiff3DIO": _Reader(_read_tiff_volume, _write_tiff_volume, (".tif", ".tiff")),
    "SimpleITKIO": _Reader(_read_volume, _write_volume, _VOLUMES, "SimpleITK"),
    "NibabelIO": _Reader(_read_nifti, _write_nifti, _VOLUMES, "nibabel"),
}
