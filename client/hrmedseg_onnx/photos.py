"""Photos (JPEG, WebP, GIF) as viewers show them, for models that were trained with pictures of another format."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hrmedseg_onnx.errors import DataError
from hrmedseg_onnx.file_kinds import recognize_file
from hrmedseg_onnx.image_check import MAX_PIXELS, allow_large_images, warn_of_lost_bits

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FORMATS", "ORIENTATION", "PHOTO_SUFFIXES", "fit_channels", "is_photo", "open_image", "read_photo", "turn"]

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif")
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are read, whatever the file name says: browsers save WebP and PNG as .jpg, and people rename JPEG to
.png. Pillow knows more, and hands EPS to Ghostscript, which executes it."""
ORIENTATION = 0x0112  # tag of EXIF and TIFF


def is_photo(file: Path) -> bool:
    """Return whether the name ends like that of a photo."""
    return file.name.lower().endswith(PHOTO_SUFFIXES)


def read_photo(file: Path) -> np.ndarray:
    """Read a photo: EXIF orientation applied, palettes and CMYK as RGB, transparency removed.

    Returns:
        (H, W) or (H, W, 3); 8 bits, unless the file is a gray PNG of 16 bits.

    Raises:
        DataError: see `open_image`.
        Exception: whatever Pillow raises for damaged files.
    """
    with open_image(file) as image:
        image.load()
        orientation = _orientation(image)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            pixels = np.asarray(image)
        else:
            pixels = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    return turn(pixels, orientation)


@contextmanager
def open_image(file: Path) -> Iterator[Image]:
    """Open an image of one of the `FORMATS` with Pillow, not decoded yet.

    Raises:
        DataError: the file is of another kind despite its name, has several frames, or more than `MAX_PIXELS` pixels.
    """
    import PIL.Image

    warn_of_lost_bits([file])
    try:
        with allow_large_images(), PIL.Image.open(file, formats=FORMATS) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # of a phone: previews and depth maps follow the photo
                raise DataError(f"{file} holds {frames} frames or pages. Save those to predict as files of their own.")
            yield image
    except PIL.UnidentifiedImageError:
        kind = recognize_file(file) or "not an image that can be read, despite its name. Save it as JPEG or PNG"
        raise DataError(f"{file} is {kind}.") from None
    except PIL.Image.DecompressionBombError:
        raise DataError(f"{file} declares more than {MAX_PIXELS:,} pixels, the most that are read.") from None


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation, 1 to 8, to (H, W) or (H, W, C)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def fit_channels(data: np.ndarray, channels: Sequence[str], file: Path) -> np.ndarray:
    """Return a photo with the channels of a model, where this is lossless: JPEG of gray images may be stored as RGB.

    Args:
        data: (C, ...) with one or three channels.
        channels: names of the expected channels. A gray photo stands for three of them only if they are colors.
        file: the photo, for messages.

    Returns:
        `data`, a gray image repeated as R, G and B, or a single channel of a color image without colors.

    Raises:
        DataError: the photo has colors, and a gray one is expected; or it is gray, and the channels are not colors.
    """
    if len(data) == 3 and len(channels) == 1:
        if (data == data[:1]).all():
            return data[:1]
        raise DataError(
            f"{file} has colors, and is read for a single channel ({channels[0]}). Save it as a gray image, if gray "
            f"values mean the same as in the images that the model was trained with."
        )
    if len(data) == 1 and len(channels) == 3:
        if _are_colors(channels):
            return np.repeat(data, 3, axis=0)
        raise DataError(
            f"{file} is gray, and the model takes three channels ({', '.join(channels)}). Give a file for each, or an "
            f"RGB image that holds them."
        )
    return data


def _are_colors(channels: Sequence[str]) -> bool:
    """Return whether channels are red, green and blue by their names; RFP, GFP and BFP are not."""
    if {name.casefold() for name in channels} == {"rgb_to_0_1"}:  # nnU-Net's normalization of RGB images
        return True
    colors = "r(ed)?", "g(reen)?", "b(lue)?"
    return all(
        re.match(rf"{color}(?![a-z])", name, re.IGNORECASE) for color, name in zip(colors, channels, strict=True)
    )


def _orientation(image: Image) -> int:
    with suppress(Exception):  # damaged EXIF data is no reason to lose the image
        value = image.getexif().get(ORIENTATION, 1)
        return value if value in range(1, 9) else 1
    return 1
