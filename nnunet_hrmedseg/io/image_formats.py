"""Which image files are read, and how they are decoded to 8 bits without losing bits or pages unnoticed."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageOps, UnidentifiedImageError

from hrmedseg_onnx.image_check import MAX_PIXELS, allow_large_images
from hrmedseg_onnx.photos import FORMATS, ORIENTATION
from nnunet_hrmedseg.errors import DataError

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "ORIENTATION",
    "SUFFIXES",
    "allow_large_images",
    "decode",
    "loses_bits",
    "open_image",
    "scaled_to_uint8",
]

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".webp", ".gif"),
    *(".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm"),
)

BITS_PER_SAMPLE = 0x0102  # tag of TIFF
_TIF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_READABLE_PHOTOMETRICS = (
    tifffile.PHOTOMETRIC.MINISBLACK,
    tifffile.PHOTOMETRIC.MINISWHITE,
    tifffile.PHOTOMETRIC.RGB,
)
_REDUCED_OR_MASK = 1 | 4  # flags of the tag NewSubfileType
_WHOLE_PAGE = 0.5  # smaller pages of a TIFF, in parts of the first one's pixels, are previews and reduced copies


def decode(file: str | io.BytesIO) -> Image.Image:
    """Return the image in a file at its own size, mode L or RGB, 8 bits.

    Values of more than 8 bits are stretched between their 0.5 and 99.5 percentiles.

    Raises:
        UnidentifiedImageError: not an image, or not of a format that is read.
        DataError: several pages, or colors of which bits would be lost.
        Exception: whatever Pillow and tifffile raise for damaged files.
    """
    try:
        with open_image(file) as opened:
            if not loses_bits(opened):
                return _as_8_bits(opened)
    except UnidentifiedImageError:
        if not _is_tif(file):
            raise
    return _decode_tif(file)


@contextmanager
def open_image(file: str | io.BytesIO) -> Iterator[Image.Image]:
    """Open an image with Pillow, not decoded yet, and check what Pillow would drop without a message.

    A TIFF of colors with more than 8 bits is opened, because tifffile can decode it: see `decode`.

    Raises:
        UnidentifiedImageError: not an image, or not of a format that is read.
        DataError: several pages or frames; or more than 8 bits for a color in a format other than TIFF.
    """
    with allow_large_images(), Image.open(file, formats=FORMATS) as opened:
        if opened.format == "TIFF":
            _check_pages_of_tif(file)
        else:
            if loses_bits(opened):
                raise DataError(
                    f"it is a {opened.format} of more than 8 bits with color or transparency, of which Pillow reads "
                    f"only the upper 8: save it as TIFF, or with 8 bits"
                )
            frames = getattr(opened, "n_frames", 1)
            if frames > 1 and opened.format != "MPO":  # of a photograph, the rest are previews and depth maps
                raise DataError(_several(frames, "frames", opened.size))
        yield opened


def loses_bits(opened: Image.Image) -> bool:
    """Whether Pillow decodes several channels of more than 8 bits to their upper 8.

    Gray images keep their bits, in the modes I, I;16 and F.

    Args:
        opened: as Pillow opened it. Of an image that was decoded, only TIFF can tell.
    """
    if len(opened.getbands()) == 1:
        return False
    tile = getattr(opened, "tile", None)
    decoder = tile[0][3] if tile else None
    if opened.format == "TIFF":
        return max(getattr(opened, "tag_v2", {}).get(BITS_PER_SAMPLE) or (8,)) > 8
    if opened.format == "PNG":
        return ";16" in str(decoder)
    if opened.format == "PPM":
        return isinstance(decoder, tuple) and isinstance(decoder[-1], int) and decoder[-1] > 255
    return opened.format == "JPEG2000" and _bits_of_jpeg2000(opened) > 8


def scaled_to_uint8(values: np.ndarray) -> np.ndarray:
    """Any real dtype and shape -> uint8: the 0.5 and 99.5 percentiles become 0 and 255; what is not a number, 0."""
    values = values.astype(np.float32)
    sample = values[np.isfinite(values)]
    if sample.size == 0:
        raise DataError("it holds no finite value")
    if sample.size > 2_000_000:
        sample = sample[np.random.default_rng(0).integers(0, sample.size, 1_000_000)]
    low, high = np.percentile(sample, (0.5, 99.5)).tolist()
    if low == high:  # a few bright spots on an even background
        low, high = float(sample.min()), float(sample.max())
    scaled = (np.nan_to_num(values, nan=low) - low) * (255 / (high - low) if high > low else 0)
    return np.clip(scaled, 0, 255).round().astype(np.uint8)


# ---- Pillow ----------------------------------------------------------------------------------------------------------


def _as_8_bits(opened: Image.Image) -> Image.Image:
    opened.load()
    image = opened
    with suppress(Exception):  # a damaged orientation tag is no reason to lose the image
        image = ImageOps.exif_transpose(opened)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(scaled_to_uint8(np.asarray(image)))
    return image.convert("L" if image.mode == "L" else "RGB")


def _bits_of_jpeg2000(opened: Image.Image) -> int:
    """Return the largest bit depth of a channel, from the SIZ marker of the code stream; 8 if there is no marker."""
    stream = getattr(opened, "fp", None)
    if stream is None:
        return 8
    position = stream.tell()
    stream.seek(0)
    head = stream.read(1 << 16)
    stream.seek(position)
    start = head.find(b"\xff\x4f\xff\x51")
    channels = int.from_bytes(head[start + 40 : start + 42], "big") if start >= 0 else 0
    depths = head[start + 42 : start + 42 + 3 * channels : 3]
    return max(((depth & 0x7F) + 1 for depth in depths), default=8)


# ---- tifffile --------------------------------------------------------------------------------------------------------


def _is_tif(file: str | io.BytesIO) -> bool:
    if isinstance(file, str):
        with open(file, "rb") as opened:
            return opened.read(4) in _TIF_STARTS
    file.seek(0)
    return file.read(4) in _TIF_STARTS


def _decode_tif(file: str | io.BytesIO) -> Image.Image:
    """TIFF of a kind that Pillow does not decode whole, such as colors of 16 bits or of floating-point values."""
    _check_pages_of_tif(file)
    with _tif(file) as tif:
        page = tif.pages.first
        if page.imagewidth * page.imagelength > MAX_PIXELS or page.size > 4 * MAX_PIXELS:
            raise Image.DecompressionBombError
        if page.photometric not in _READABLE_PHOTOMETRICS:
            kind = getattr(page.photometric, "name", page.photometric)
            raise DataError(f"its values are {page.dtype} in the color space {kind}: save it as RGB")
        orientation = page.tags.get(ORIENTATION)
        pixels = page.asarray()
    if pixels.ndim == 3 and pixels.shape[0] <= 4 < pixels.shape[-1]:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 3 and pixels.shape[-1] <= 4:
        pixels = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., 0]
    if pixels.ndim != 2 and pixels.shape[2:] != (3,):
        raise DataError(f"it has the shape {pixels.shape}, which is neither a gray nor a color image")
    image = Image.fromarray(np.ascontiguousarray(pixels if pixels.dtype == np.uint8 else scaled_to_uint8(pixels)))
    if orientation is not None:
        image.getexif()[ORIENTATION] = orientation.value
        image = ImageOps.exif_transpose(image)
    return image


def _check_pages_of_tif(file: str | io.BytesIO) -> None:
    """Refuse a TIFF with several pages of about one size: which one is meant is not known.

    Masks of transparency, reduced copies, and previews of less than half of the first page's pixels are passed over.

    Raises:
        DataError: several pages.
    """
    pages, size = 1, (0, 0)
    # what tifffile cannot list is not left out: the first page is all that there is to read
    with suppress(Exception), _tif(file) as tif:
        first = tif.pages.first
        size = first.imagewidth, first.imagelength
        others: list[Any] = [page for page in tif.pages[1:] if not getattr(page, "subfiletype", 0) & _REDUCED_OR_MASK]
        pages += sum(page.imagewidth * page.imagelength >= _WHOLE_PAGE * math.prod(size) for page in others)
        if pages == 1 and (tif.is_imagej or tif.is_shaped):  # both may write a stack of images behind a single header
            pages = math.prod(tif.series[0].shape) // math.prod(first.shape)
    if pages > 1:
        raise DataError(_several(pages, "pages", size))


@contextmanager
def _tif(file: str | io.BytesIO) -> Iterator[tifffile.TiffFile]:
    """Open with tifffile; a stream is read from its start, and is afterwards where it was."""
    position = None if isinstance(file, str) else file.tell()
    try:
        if position is not None:
            file.seek(0)  # type: ignore[union-attr]
        with tifffile.TiffFile(file) as opened:
            yield opened
    finally:
        if position is not None:
            file.seek(position)  # type: ignore[union-attr]


def _several(count: int, what: str, size: tuple[int, int]) -> str:
    return (
        f"it holds {count} {what} of {size[0]} x {size[1]} pixels, and it is not known which is meant: save the "
        f"{what} that are to be used as files of their own"
    )
