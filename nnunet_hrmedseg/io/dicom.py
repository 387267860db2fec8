"""Pixels of DICOM images: radiographs (DX, CR, MG), ultrasound (US), photographs (XC), slices, and videos of them.

Pixels come as they are meant to be seen, independent of how a file stores them: compressed transfer syntaxes are
decoded, YBR and palette colors become RGB, MONOCHROME1 (white is zero) becomes MONOCHROME2, and rescale slope and
intercept are applied.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_hrmedseg.errors import DataError, HRMedSegError, format_shape, summarize_error
from nnunet_hrmedseg.io.extras import import_extra
from nnunet_hrmedseg.io.image_formats import MAX_PIXELS

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = [
    "SUFFIXES",
    "DicomImage",
    "declared_shape",
    "import_pydicom",
    "is_dicom",
    "pixel_spacing",
    "read_dicom",
    "read_header",
]

SUFFIXES = (".dcm", ".dicom")
MAX_SAMPLES = 4 * MAX_PIXELS  # of all frames and colors together; a file may declare any size
DECODERS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
PREAMBLE = 128
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


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


def import_pydicom() -> Any:
    """Return the module pydicom.

    Raises:
        SetupError: it is not installed.
    """
    import_extra("pydicom.pixels", "dicom", "reading DICOM")
    return import_extra("pydicom", "dicom", "reading DICOM")


def is_dicom(file: Path) -> bool:
    """Return whether a file is DICOM by its content: "DICM" after the preamble."""
    with open(file, "rb") as stream:
        return stream.read(PREAMBLE + 4)[PREAMBLE:] == b"DICM"


def read_header(file: Path) -> Dataset:
    """Read all attributes of a DICOM file; pixels stay in the file until they are asked for.

    Raises:
        DataError: it cannot be read, is not DICOM, or has no pixels.
        SetupError: pydicom is not installed.
    """
    pydicom = import_pydicom()
    with _reading(file):
        header = pydicom.dcmread(file, defer_size="1 MB")
        if "PixelData" not in header:
            kind = f": it is of the class {header.SOPClassUID.name}" if "SOPClassUID" in header else ""
            raise DataError(f"{file} has no pixels{kind}. Give images alone.")
        return header


def read_dicom(file: Path) -> DicomImage:
    """Read an image, or all frames of a video.

    Raises:
        DataError: it cannot be read, is damaged or too large, or is not a grey or color image.
        SetupError: a package that decodes it is missing.
    """
    header = read_header(file)
    with _reading(file):
        pixels = _decode(file, header)
        if pixels.ndim == 3:
            pixels = _meant_values(pixels, header)
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
        raise DataError(f"{file} has {samples} values per pixel; grey images have 1 and color images 3.")
    if min(shape) < 1 or shape[0] * shape[1] * shape[2] * samples > MAX_SAMPLES:
        raise DataError(f"{file} declares {format_shape(shape)} pixels (frames x rows x columns), more than are read.")
    try:
        pixels = pydicom.pixels.pixel_array(header)
    except (ImportError, NotImplementedError, RuntimeError) as error:
        raise DataError(
            f"{file} cannot be decoded ({header.file_meta.TransferSyntaxUID.name}): it is damaged, or a decoder is "
            f"missing ({DECODERS})."
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


def _meant_values(pixels: np.ndarray, header: Dataset) -> np.ndarray:
    """Return grey values with white as the largest, rescaled to what the modality measures."""
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        signed = header.get("PixelRepresentation", 0) == 1
        bits = int(header.get("BitsStored", 8 * pixels.dtype.itemsize))
        lowest, highest = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
        pixels = (lowest + highest - pixels.astype(np.int64)).astype(pixels.dtype)
    slope, intercept = float(header.get("RescaleSlope") or 1), float(header.get("RescaleIntercept") or 0)
    if (slope, intercept) == (1.0, 0.0):
        return pixels
    rescaled = pixels.astype(np.float64) * slope + intercept
    whole = slope.is_integer() and intercept.is_integer()
    return rescaled.astype(np.int32 if whole and np.abs(rescaled).max(initial=0) < 2**31 else np.float32)


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
def _reading(file: Path) -> Iterator[None]:
    """Turn whatever pydicom raises for a damaged file into a DataError, and silence its warnings."""
    pydicom = import_pydicom()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except HRMedSegError:
        raise
    except pydicom.errors.InvalidDicomError as error:
        raise DataError(f"{file} is not a DICOM file: it does not have the letters DICM after 128 bytes.") from error
    except Exception as error:
        raise DataError(f"{file} cannot be read ({type(error).__name__}: {summarize_error(error)}).") from error
