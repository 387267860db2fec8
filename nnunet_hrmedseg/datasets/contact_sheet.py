"""A picture of a dataset: cases with the contours of their classes, to look at before hours of training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from nnunet_hrmedseg.io.colors import CLASS_COLORS
from nnunet_hrmedseg.io.image_formats import scaled_to_uint8

__all__ = ["CASES_SHOWN", "contact_sheet", "thumbnail"]

CASES_SHOWN, COLUMNS, TILE, TEXT = 12, 4, 320, 18


def thumbnail(pixels: np.ndarray, labels: np.ndarray) -> Image.Image:
    """Return the image with the contours of its classes, at most TILE pixels a side.

    Args:
        pixels: (H, W) or (H, W, 3), any number type.
        labels: (H, W) class numbers.
    """
    image = Image.fromarray(pixels if pixels.dtype == np.uint8 else scaled_to_uint8(pixels)).convert("RGB")
    image.thumbnail((TILE, TILE))
    small = np.asarray(Image.fromarray(labels).resize(image.size, Image.Resampling.NEAREST))
    edge = np.zeros(small.shape, bool)
    for axis in (0, 1):
        different = np.diff(small, axis=axis) != 0
        first, last = [slice(None)] * 2, [slice(None)] * 2
        first[axis], last[axis] = slice(None, -1), slice(1, None)
        edge[tuple(first)] |= different
        edge[tuple(last)] |= different
    edge &= small > 0
    colors = np.array([ImageColor.getrgb(color) for color in CLASS_COLORS], np.uint8)
    drawn = np.array(image)
    drawn[edge] = colors[(small[edge].astype(int) - 1) % len(colors)]
    return Image.fromarray(drawn)


def contact_sheet(tiles: Sequence[tuple[str, Image.Image]], classes: Sequence[str]) -> Image.Image:
    """Lay out thumbnails with their names, and a legend of the classes in their colors below."""
    rows = -(-len(tiles) // COLUMNS)
    columns = min(COLUMNS, max(1, len(tiles)))
    sheet = Image.new("RGB", (columns * (TILE + 8) + 8, rows * (TILE + TEXT + 8) + TEXT + 16), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (name, tile) in enumerate(tiles):
        left, top = 8 + index % COLUMNS * (TILE + 8), 8 + index // COLUMNS * (TILE + TEXT + 8)
        draw.text((left, top), name[:48], fill="black")
        sheet.paste(tile, (left + (TILE - tile.width) // 2, top + TEXT + (TILE - tile.height) // 2))
    left, top = 8, sheet.height - TEXT - 4
    for index, name in enumerate(classes):
        draw.rectangle((left, top, left + 12, top + 12), fill=CLASS_COLORS[index % len(CLASS_COLORS)])
        draw.text((left + 18, top), name, fill="black")
        left += 34 + int(draw.textlength(name))
    return sheet
