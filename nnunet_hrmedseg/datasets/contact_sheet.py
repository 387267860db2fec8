"""Draw a contact sheet of a dataset: cases with the contours of their classes, to check before training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from nnunet_hrmedseg.io.colors import CLASS_COLORS
from nnunet_hrmedseg.io.image_formats import scaled_to_uint8
from nnunet_hrmedseg.io.pictures import class_colors, outline

__all__ = ["CASES_SHOWN", "contact_sheet", "thumbnail"]

CASES_SHOWN, COLUMNS, TILE, TEXT = 12, 4, 320, 18


def thumbnail(pixels: np.ndarray, labels: np.ndarray) -> Image.Image:
    """Return the image with the contours of its classes, at most TILE pixels wide and high.

    Args:
        pixels: (H, W) or (H, W, 3), any number type.
        labels: (H, W) class numbers.
    """
    image = Image.fromarray(pixels if pixels.dtype == np.uint8 else scaled_to_uint8(pixels)).convert("RGB")
    image.thumbnail((TILE, TILE))
    small = np.asarray(Image.fromarray(labels).resize(image.size, Image.Resampling.NEAREST))
    edge = outline(small)
    drawn = np.array(image)
    drawn[edge] = class_colors(small[edge])
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
