"""Where an image lies, and how it is read: a file, a member of a tar file, or a case of an nnU-Net raw dataset.

Nothing is unpacked or copied.
"""

from __future__ import annotations

import io
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from PIL import Image, UnidentifiedImageError

from nnunet_hrmedseg.errors import DataError, HRMedSegError
from nnunet_hrmedseg.io.file_names import safe_path_str
from nnunet_hrmedseg.io.image_formats import (
    FORMATS,
    MAX_PIXELS,
    SUFFIXES,
    allow_large_images,
    decode,
    open_image,
    scaled_to_uint8,
)

__all__ = [
    "CaseFiles",
    "ImageFile",
    "RawSlice",
    "StoredImage",
    "TarMember",
    "VOLUMES_KEPT",
    "case_pixels",
    "check_format",
    "describe_read_error",
    "file_state",
    "number_of_slices",
    "safe_path_str",
]

MAX_SLICES = 100_000
VOLUMES_KEPT = 4
"""Volumes whose slices may be asked for in turn, and each is read once: in uint8 they take no more memory than one
does in float32, while it is read."""


class StoredImage(ABC):
    """One image on disk."""

    __slots__ = ()
    state: str

    @property
    @abstractmethod
    def name(self) -> str:
        """For messages: path, tar!member or path#slice."""

    @property
    def identity(self) -> str:
        """The name with size and time of change of the file: a changed file is another image."""
        return f"{self.name}|{self.state}"

    @property
    def volume(self) -> CaseFiles | None:
        """Of an image that is a slice, what is read as a whole to get it."""
        return None

    @abstractmethod
    def read(self) -> Image.Image:
        """Return the image at its own size, in mode L or RGB. Raises any exception of its reader."""


@dataclass(frozen=True, slots=True)
class ImageFile(StoredImage):
    """An image file of a single page."""

    path: str
    state: str

    @property
    def name(self) -> str:
        return safe_path_str(self.path)

    def read(self) -> Image.Image:
        return decode(self.path)


@dataclass(frozen=True, slots=True)
class TarMember(StoredImage):
    """An image file within an uncompressed tar file."""

    tar: str
    state: str
    member: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        return f"{safe_path_str(self.tar)}!{self.member}"

    def read(self) -> Image.Image:
        # opened again each time: cheap compared with decoding, and no handle whose position forked workers would share
        with open(self.tar, "rb") as file:
            file.seek(self.offset)
            return decode(io.BytesIO(file.read(self.size)))


@dataclass(frozen=True, slots=True)
class CaseFiles:
    """The files of a case of an nnU-Net raw dataset that become red, green and blue; and who reads them."""

    files: tuple[str, ...]
    state: str
    reader: type[BaseReaderWriter]

    @classmethod
    def of(cls, files: Sequence[str], reader: type[BaseReaderWriter]) -> CaseFiles:
        """Of all channels of a case: the first three, or the first where there are fewer."""
        chosen = tuple(os.path.realpath(file) for file in (files[:3] if len(files) >= 3 else files[:1]))
        return cls(chosen, ",".join(map(file_state, chosen)), reader)


@dataclass(frozen=True, slots=True)
class RawSlice(StoredImage):
    """A 2D case, or one slice along the first array axis of a volume."""

    case: CaseFiles
    slice: int | None

    @property
    def state(self) -> str:  # type: ignore[override]
        return self.case.state

    @property
    def name(self) -> str:
        return safe_path_str(self.case.files[0]) + ("" if self.slice is None else f"#{self.slice:04d}")

    @property
    def volume(self) -> CaseFiles | None:
        return None if self.slice is None else self.case

    def read(self) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(case_pixels(self.case)[self.slice or 0]))


@lru_cache(maxsize=VOLUMES_KEPT)
def case_pixels(case: CaseFiles) -> np.ndarray:
    """(Z, Y, X) or (Z, Y, X, 3) uint8. A volume is scaled as a whole, each channel by itself."""
    printed = io.StringIO()
    for file in case.files:
        if _is_natural(file):
            with open_image(file):
                pass
    try:
        with allow_large_images(), redirect_stdout(printed):
            channels, _ = case.reader().read_images(case.files)
    except Exception as error:  # nnU-Net's readers say by print what is wrong
        raise DataError(describe_read_error(error) if str(error) else printed.getvalue() or repr(error)) from error
    channels = channels[:3] if len(channels) >= 3 else channels[:1]
    if all(map(_is_uint8, case.files)) and channels.min() >= 0 and channels.max() <= 255:
        channels = channels.astype(np.uint8)
    else:
        channels = np.stack([scaled_to_uint8(channel) for channel in channels])
    return channels[0] if len(channels) == 1 else np.moveaxis(channels, 0, -1)


def check_format(file: str) -> None:
    """nnU-Net's reader of natural images takes whatever Pillow knows. Raises UnidentifiedImageError."""
    if _is_natural(file):
        with allow_large_images(), Image.open(file, formats=FORMATS):
            pass


def _is_natural(file: str) -> bool:
    """Whether nnU-Net has a file of this name read by its reader of natural images, through Pillow; TIFF is not."""
    return file.lower().endswith(SUFFIXES) and not file.lower().endswith((".tif", ".tiff"))


def number_of_slices(case: CaseFiles) -> int:
    """From the header alone where the first array axis is known from it.

    Raises:
        DataError: more than a volume has; a header can say any number.
    """
    slices = _slices_of_header(case)
    if slices > MAX_SLICES:
        raise DataError(f"its header says {slices:,} slices, more than {MAX_SLICES:,}")
    return slices


def _slices_of_header(case: CaseFiles) -> int:
    file = case.files[0]
    if issubclass(case.reader, NaturalImage2DIO):
        return 1
    if case.reader is NibabelIO:
        volume: Any = nibabel.load(file)
        return volume.shape[-1]
    if case.reader is SimpleITKIO:
        size = _itk_header(file).GetSize()
        return size[2] if len(size) > 2 else 1
    if case.reader is Tiff3DIO:
        with tifffile.TiffFile(file) as tif:
            return tif.series[0].shape[0]
    return len(case_pixels(case))


def _is_uint8(file: str) -> bool:
    """nnU-Net's readers return float32 whatever the file holds."""
    with suppress(Exception):
        if file.lower().endswith((".tif", ".tiff")):
            with tifffile.TiffFile(file) as tif:
                return tif.series[0].dtype == np.uint8
        if file.lower().endswith(SUFFIXES):
            with allow_large_images(), Image.open(file, formats=FORMATS) as image:
                return image.mode in ("L", "P", "RGB", "RGBA")
        if file.lower().endswith((".nii", ".nii.gz")):  # SimpleITK refuses some affines
            stored: Any = nibabel.load(file)
            return bool(stored.get_data_dtype() == np.uint8 and (stored.dataobj.slope, stored.dataobj.inter) == (1, 0))
        return _itk_header(file).GetPixelID() in (sitk.sitkUInt8, sitk.sitkVectorUInt8)
    return False


def _itk_header(file: str) -> sitk.ImageFileReader:
    header = sitk.ImageFileReader()
    header.SetFileName(file)
    header.ReadImageInformation()
    return header


def describe_read_error(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MAX_PIXELS:,} pixels"
    if isinstance(error, UnidentifiedImageError):
        return "it is no image, or of a kind that cannot be read"
    if isinstance(error, FileNotFoundError):
        return "the file is not there"
    text = " ".join(str(error).split())
    return text if isinstance(error, HRMedSegError) else f"{text} ({type(error).__name__})".lstrip()


def file_state(file: str) -> str:
    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for ever
        raise DataError("it is not a regular file")
    return f"{status.st_size}:{status.st_mtime_ns}"
