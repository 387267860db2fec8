"""Pixels of DICOM images: radiographs (DX, CR, MG), ultrasound (US), photographs (XC), slices, and videos of them.

Pixels come as they are meant to be seen, independent of how a file stores them: compressed transfer syntaxes are
decoded, YBR and palette colors become RGB, MONOCHROME1 (white is zero) becomes MONOCHROME2, and what the modality
measures (rescale slope and intercept, of an enhanced image for each frame, or a modality lookup table) is computed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hrmedseg_onnx.dicom_limits import PREAMBLE, check_deflated, check_frames
from hrmedseg_onnx.errors import DataError, HRMedSegError, format_shape, summarize_error
from hrmedseg_onnx.extras import import_package
from hrmedseg_onnx.image_check import MAX_PIXELS

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = [
    "PACKAGES",
    "SUFFIXES",
    "DicomImage",
    "class_name",
    "declared_shape",
    "import_pydicom",
    "is_dicom",
    "is_image",
    "pixel_spacing",
    "read_dicom",
    "read_header",
    "reading",
]

SUFFIXES = (".dcm", ".dicom")
PACKAGES = "'pydicom>=3' highdicom pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
"""What pip installs for DICOM: the extra `dicom`."""
MAX_SAMPLES = 4 * MAX_PIXELS  # of all frames and colors together; a file may declare any size
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
NOT_IMAGES = ("SEG", "RTDOSE")
"""Modalities whose files have rows and columns, but are made from images."""


@dataclass(frozen=True)
class DicomImage:
    """The pixels of one DICOM file.

    Attributes:
        pixels: (frames, H, W), or (frames, H, W, 3) in RGB.
        spacing: height and width of a pixel in mm; None where the file has none.
        header: all attributes but the pixels.
    """

    pixels: np.ndarray
    spacing: tuple[float, float] | None
    header: Dataset

    @property
    def channels(self) -> np.ndarray:
        """The pixels as (C, frames, H, W): one channel of gray values, or three of colors."""
        return self.pixels[None] if self.pixels.ndim == 3 else np.moveaxis(self.pixels, -1, 0)


def import_pydicom() -> Any:
    """Return the module pydicom.

    Raises:
        SetupError: it is not installed.
    """
    import_package("pydicom.pixels", PACKAGES, "reading DICOM")
    return import_package("pydicom", PACKAGES, "reading DICOM")


def is_dicom(file: Path) -> bool:
    """Return whether a file is DICOM by its content: "DICM" after the preamble."""
    with open(file, "rb") as stream:
        return stream.read(PREAMBLE + 4)[PREAMBLE:] == b"DICM"


def is_image(file: Path) -> bool:
    """Return whether a DICOM file is an image, and not a report, a directory, or a segmentation of an image.

    True for a damaged file, which reading then reports.
    """
    pydicom = import_pydicom()
    try:
        with reading(file):
            check_deflated(file, pydicom)
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["Rows", "Modality"])
            return "Rows" in header and header.get("Modality") not in NOT_IMAGES
    except DataError:
        return True


def read_header(file: Path) -> Dataset:
    """Read all attributes of a DICOM file; pixels stay in the file until they are asked for.

    Raises:
        DataError: it cannot be read, is not DICOM, or has no pixels.
        SetupError: pydicom is not installed.
    """
    pydicom = import_pydicom()
    with reading(file):
        if not is_dicom(file):
            raise DataError(f"{file} is not a DICOM file: it does not have the letters DICM after 128 bytes.")
        check_deflated(file, pydicom)
        header = pydicom.dcmread(file, defer_size="1 MB")
        if "PixelData" not in header:
            raise DataError(f"{file} has no pixels: it is of the class {class_name(header)}. Give images alone.")
        return header


def read_dicom(file: Path) -> DicomImage:
    """Read an image, or all frames of a video.

    Raises:
        DataError: it cannot be read, is damaged or too large, or is not a gray or color image.
        SetupError: a package that decodes it is missing.
    """
    header = read_header(file)
    with reading(file):
        pixels = _decode(file, header)
        if pixels.ndim == 3:
            pixels = _measured(pixels, header)
        return DicomImage(pixels, pixel_spacing(header), header)


def declared_shape(header: Dataset) -> tuple[int, int, int]:
    """Return frames, rows and columns."""
    return int(header.get("NumberOfFrames") or 1), int(header.Rows), int(header.Columns)


def _decode(file: Path, header: Dataset) -> np.ndarray:
    """Return the stored values, (frames, H, W), or RGB as (frames, H, W, 3)."""
    pydicom = import_pydicom()
    shape = declared_shape(header)
    samples = int(header.get("SamplesPerPixel", 1))
    if samples not in (1, 3):
        raise DataError(f"{file} has {samples} values per pixel; gray images have 1 and color images 3.")
    if min(shape) < 1 or shape[0] * shape[1] * shape[2] * samples > MAX_SAMPLES:
        raise DataError(f"{file} declares {format_shape(shape)} pixels (frames x rows x columns), more than are read.")
    check_frames(file, header, pydicom)
    try:
        pixels = pydicom.pixels.pixel_array(header)
    except (ImportError, NotImplementedError, RuntimeError) as error:
        syntax = _printable(header.file_meta.TransferSyntaxUID.name)
        raise DataError(
            f"{file} cannot be decoded ({syntax}): it is damaged, or a decoder is missing (pip install {PACKAGES})."
        ) from error
    if header.PhotometricInterpretation == "PALETTE COLOR":
        pixels = _palette_as_8_bits(pydicom.pixels.apply_color_lut(pixels, header))[..., :3]
        samples = 3
    expected = (*shape, 3) if samples == 3 else shape
    if pixels.size != np.prod(expected):
        raise DataError(f"{file} holds {format_shape(pixels.shape)} values; its header declares {format_shape(shape)}.")
    return pixels.reshape(expected)


def _palette_as_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Return colors of a palette with 16 bits as 8 bits: palettes of 8 bits are often stored in the upper byte."""
    return (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels


def _measured(pixels: np.ndarray, header: Dataset) -> np.ndarray:
    """Return gray values with white as the largest, rescaled to what the modality measures."""
    inverted = header.get("PhotometricInterpretation") == "MONOCHROME1"
    if header.get("ModalityLUTSequence"):
        measured = import_pydicom().pixels.apply_modality_lut(pixels, header)
        _, _, bits = header.ModalityLUTSequence[0].LUTDescriptor
        return (1 << bits) - 1 - measured if inverted else measured
    if inverted:
        signed = header.get("PixelRepresentation", 0) == 1
        bits = int(header.get("BitsStored", 8 * pixels.dtype.itemsize))
        lowest, highest = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
        pixels = (lowest + highest - pixels.astype(np.int64)).astype(pixels.dtype)
    rescaling = _rescaling(header, len(pixels))
    if (rescaling == (1, 0)).all():
        return pixels
    slope, intercept = (rescaling[:, part, None, None] for part in (0, 1))
    rescaled = pixels.astype(np.float64) * slope + intercept
    whole = (rescaling == rescaling.round()).all() and np.abs(rescaled).max(initial=0) < 2**31
    return rescaled.astype(np.int32 if whole else np.float32)


def _rescaling(header: Dataset, frames: int) -> np.ndarray:
    """Return slope and intercept of each frame, (frames, 2).

    Enhanced images have them in the functional groups, shared or for each frame, instead of at the top.
    """
    found = np.array([_slope_and_intercept(header) or (1, 0)] * frames, dtype=np.float64)
    for groups in (header.get("SharedFunctionalGroupsSequence") or [])[:1]:
        for transformation in groups.get("PixelValueTransformationSequence") or []:
            found[:] = _slope_and_intercept(transformation) or found
    for frame, groups in enumerate((header.get("PerFrameFunctionalGroupsSequence") or [])[:frames]):
        for transformation in groups.get("PixelValueTransformationSequence") or []:
            found[frame] = _slope_and_intercept(transformation) or found[frame]
    return found


def _slope_and_intercept(attributes: Dataset) -> tuple[float, float] | None:
    if "RescaleSlope" not in attributes and "RescaleIntercept" not in attributes:
        return None
    return float(attributes.get("RescaleSlope") or 1), float(attributes.get("RescaleIntercept") or 0)


def pixel_spacing(header: Dataset) -> tuple[float, float] | None:
    """Return (row spacing, column spacing) in mm: of the patient's plane, else of the detector's; None without any."""
    values = [header.get(name) for name in SPACINGS]
    for groups in header.get("SharedFunctionalGroupsSequence", []):
        values += [measures.get("PixelSpacing") for measures in groups.get("PixelMeasuresSequence", [])]
    for value in values:
        try:
            row, column = (float(side) for side in value or ())
        except (TypeError, ValueError):
            continue
        if 0 < row < np.inf and 0 < column < np.inf:
            return row, column
    return None


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn whatever pydicom raises for a damaged file into a DataError, and silence its warnings.

    Attributes are parsed when they are used: this context is needed there as well.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except HRMedSegError:
        raise
    except Exception as error:
        raise DataError(
            f"{file} cannot be read ({type(error).__name__}: {_printable(summarize_error(error))})."
        ) from error


def class_name(header: Dataset) -> str:
    """Return the name of the SOP class."""
    return _printable(header.SOPClassUID.name) if "SOPClassUID" in header else "unknown"


def _printable(text: str) -> str:
    """Return a text of a file without characters that control the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
