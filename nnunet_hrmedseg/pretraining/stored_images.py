"""Where an image lies, and how it is read: a file, a member of a tar file, or a case of an nnU-Net raw data set.

Nothing is unpacked or copied.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
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
from PIL import Image, ImageOps, UnidentifiedImageError

from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.file_names import printable

__all__ = [
    "FORMATS",
    "CaseFiles",
    "ImageFile",
    "RawSlice",
    "StoredImage",
    "SUFFIXES",
    "TarMember",
    "VOLUMES_KEPT",
    "case_pixels",
    "check_format",
    "file_state",
    "large_images_allowed",
    "number_of_slices",
    "printable",
    "reason",
    "scaled_to_uint8",
]

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
MAX_PIXELS = 20_000 * 20_000
MAX_SLICES = 100_000
VOLUMES_KEPT = 4
"""Volumes whose slices may be asked for in turn, and each is read once: in uint8 they take no more memory than one
does in float32, while it is read."""
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What an image may be, whatever its name says. Pillow knows more, and hands EPS to Ghostscript, which executes it."""


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
        """The image at its own size, mode L or RGB. Raises whatever is wrong with it."""


@dataclass(frozen=True, slots=True)
class ImageFile(StoredImage):
    """An image file; of a file with several pages, the first."""

    path: str
    state: str

    @property
    def name(self) -> str:
        return printable(self.path)

    def read(self) -> Image.Image:
        try:
            return _decode(self.path)
        except UnidentifiedImageError:
            if not self.path.lower().endswith((".tif", ".tiff")):
                raise
            return _decode_unusual_tif(self.path)


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
        return f"{printable(self.tar)}!{self.member}"

    def read(self) -> Image.Image:
        # opened anew each time: cheap beside decoding, and no handle whose position forked workers would share
        with open(self.tar, "rb") as file:
            file.seek(self.offset)
            return _decode(io.BytesIO(file.read(self.size)))


@dataclass(frozen=True, slots=True)
class CaseFiles:
    """The files of a case of an nnU-Net raw data set that become red, green and blue; and who reads them."""

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
        return printable(self.case.files[0]) + ("" if self.slice is None else f"#{self.slice:04d}")

    @property
    def volume(self) -> CaseFiles | None:
        return None if self.slice is None else self.case

    def read(self) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(case_pixels(self.case)[self.slice or 0]))


def _decode(file: str | io.BytesIO) -> Image.Image:
    with large_images_allowed(), Image.open(file, formats=FORMATS) as opened:
        opened.load()
        image: Image.Image = opened
        with suppress(Exception):  # a damaged orientation tag is no reason to lose the image
            image = ImageOps.exif_transpose(opened)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            return Image.fromarray(scaled_to_uint8(np.asarray(image)))
        return image.convert("L" if image.mode == "L" else "RGB")


def _decode_unusual_tif(file: str) -> Image.Image:
    """TIFF of a kind that Pillow does not know, such as colour in 32-bit floats."""
    with tifffile.TiffFile(file) as tif:
        page = tif.pages.first
        if page.imagewidth * page.imagelength > MAX_PIXELS or page.size > 4 * MAX_PIXELS:
            raise Image.DecompressionBombError
        pixels = page.asarray()
    if pixels.ndim == 3 and pixels.shape[0] <= 4 < pixels.shape[-1]:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 3 and pixels.shape[-1] <= 4:
        pixels = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., 0]
    if pixels.ndim != 2 and pixels.shape[2:] != (3,):
        raise HRMedSegError(f"it has the shape {pixels.shape}, which is neither a grey nor a colour image")
    return Image.fromarray(np.ascontiguousarray(pixels if pixels.dtype == np.uint8 else scaled_to_uint8(pixels)))


@lru_cache(maxsize=VOLUMES_KEPT)
def case_pixels(case: CaseFiles) -> np.ndarray:
    """(Z, Y, X) or (Z, Y, X, 3) uint8. A volume is scaled as a whole, each channel by itself."""
    printed = io.StringIO()
    for file in case.files:
        check_format(file)
    try:
        with large_images_allowed(), redirect_stdout(printed):
            channels, _ = case.reader().read_images(case.files)
    except Exception as error:  # nnU-Net's readers say by print what is wrong
        raise HRMedSegError(reason(error) if str(error) else printed.getvalue() or repr(error)) from error
    channels = channels[:3] if len(channels) >= 3 else channels[:1]
    if all(map(_is_uint8, case.files)) and channels.min() >= 0 and channels.max() <= 255:
        channels = channels.astype(np.uint8)
    else:
        channels = np.stack([scaled_to_uint8(channel) for channel in channels])
    return channels[0] if len(channels) == 1 else np.moveaxis(channels, 0, -1)


def check_format(file: str) -> None:
    """nnU-Net's reader of natural images takes whatever Pillow knows. Raises UnidentifiedImageError."""
    if file.lower().endswith(SUFFIXES) and not file.lower().endswith((".tif", ".tiff")):
        with large_images_allowed(), Image.open(file, formats=FORMATS):
            pass


def scaled_to_uint8(values: np.ndarray) -> np.ndarray:
    """Any real dtype and shape -> uint8: the 0.5 and 99.5 percentiles become 0 and 255; what is not a number, 0."""
    values = values.astype(np.float32)
    sample = values[np.isfinite(values)]
    if sample.size == 0:
        raise HRMedSegError("it holds no finite value")
    if sample.size > 2_000_000:
        sample = sample[np.random.default_rng(0).integers(0, sample.size, 1_000_000)]
    low, high = np.percentile(sample, (0.5, 99.5)).tolist()
    if low == high:  # a few bright spots on an even background
        low, high = float(sample.min()), float(sample.max())
    scaled = (np.nan_to_num(values, nan=low) - low) * (255 / (high - low) if high > low else 0)
    return np.clip(scaled, 0, 255).round().astype(np.uint8)


def number_of_slices(case: CaseFiles) -> int:
    """From the header alone where the first array axis is known from it.

    Raises:
        HRMedSegError: more than a volume has; a header can say any number.
    """
    slices = _slices_of_header(case)
    if slices > MAX_SLICES:
        raise HRMedSegError(f"its header says {slices:,} slices, more than {MAX_SLICES:,}")
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
            with large_images_allowed(), Image.open(file, formats=FORMATS) as image:
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


@contextmanager
def large_images_allowed() -> Iterator[None]:
    """Within this context Pillow opens images of up to MAX_PIXELS, without a warning."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns above this number and refuses above twice as many
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def reason(error: Exception) -> str:
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
        raise HRMedSegError("it is not a regular file")
    return f"{status.st_size}:{status.st_mtime_ns}"
