"""Read the pixels of a mask: values, indices of a palette, or colors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from nnunet_hrmedseg.datasets.pixels import orientation, read_with_opacity
from nnunet_hrmedseg.io.image_formats import FORMATS, allow_large_images

__all__ = ["JPEG", "as_values", "number_objects", "palette", "read_mask"]

JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")


def read_mask(file: Path, *, color: bool = False) -> np.ndarray:
    """Read a mask.

    Args:
        file: to read.
        color: return colors in any case.

    Returns:
        (H, W) values, for a palette file its indices; or (H, W, 3) for a mask in color.

    Raises:
        DataError: the file cannot be read.
    """
    pixels = None if color else _palette_indices(file)
    if pixels is None:
        # ImageJ stores objects as 255 in masks that it shows as black on white
        pixels = _without_transparent(*read_with_opacity(file, stored=True))
    if color:
        return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)
    return as_values(pixels) if pixels.ndim == 3 and (pixels == pixels[..., :1]).all() else pixels


def _without_transparent(pixels: np.ndarray, opacity: np.ndarray | None) -> np.ndarray:
    """Return a mask in which transparent pixels are 0; if the others are 0 as well, these are 255."""
    if opacity is None:
        return pixels
    opaque = opacity >= opacity.max() / 2
    if opaque.all():
        return pixels
    visible = np.where(opaque if pixels.ndim == 2 else opaque[..., None], pixels, 0)
    return visible if visible.any() else opaque.astype(np.uint8) * 255


def as_values(pixels: np.ndarray) -> np.ndarray:
    """Return (H, W). A color image becomes its largest channel, which is 0 only for black."""
    return pixels.max(-1) if pixels.ndim == 3 else pixels


def number_objects(pixels: np.ndarray) -> np.ndarray:
    """Return (H, W) int32: the values or colors of a mask, numbered from 1, and 0 for the value 0 or black."""
    if pixels.ndim == 3:
        red, green, blue = (pixels[..., i].astype(np.int64) for i in range(3))
        pixels = (red << 32) + (green << 16) + blue
    values, numbered = np.unique(pixels, return_inverse=True)
    return (numbered.reshape(pixels.shape) + (values[0] != 0)).astype(np.int32)


def _palette_indices(file: Path) -> np.ndarray | None:
    try:
        with allow_large_images(), Image.open(file, formats=FORMATS) as image:
            if image.mode == "P":
                return np.asarray(ImageOps.exif_transpose(image) if orientation(file) != 1 else image)
    except Exception:  # another format, or damaged: read_image reports it
        pass
    return None


def palette(file: Path) -> bytes | None:
    """Return the palette of a file; None if it has none."""
    try:
        with allow_large_images(), Image.open(file, formats=FORMATS) as image:
            return bytes(image.getpalette() or []) if image.mode == "P" else None
    except Exception:
        return None
