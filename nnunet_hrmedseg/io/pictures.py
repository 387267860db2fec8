"""Draw the outlines of label maps on pictures."""

from __future__ import annotations

import numpy as np
from PIL import ImageColor, ImageDraw

from nnunet_hrmedseg.io.colors import CLASS_COLORS

__all__ = ["class_colors", "draw_contours", "outline"]


def outline(labels: np.ndarray) -> np.ndarray:
    """Return the outermost pixels of each labeled region.

    Args:
        labels: (H, W), 0 for background, any other numbers for classes or objects.

    Returns:
        (H, W) bool: pixels that are not 0 and differ from one of their four neighbors.
    """
    edge = np.zeros(labels.shape, bool)
    horizontal, vertical = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    edge[:, 1:] |= horizontal
    edge[:, :-1] |= horizontal
    edge[1:] |= vertical
    edge[:-1] |= vertical
    return edge & (labels != 0)


def class_colors(classes: np.ndarray) -> np.ndarray:
    """Return the colors (..., 3) uint8 of class numbers, which start at 1."""
    colors = np.array([ImageColor.getrgb(color) for color in CLASS_COLORS], np.uint8)
    return colors[(classes.astype(int) - 1) % len(colors)]


def draw_contours(draw: ImageDraw.ImageDraw, mask: np.ndarray, color: str, scale: float) -> None:
    """Draw the contours of a mask as lines with a black edge, which are visible on any background.

    Args:
        draw: of a picture that is `scale` times as large as the mask.
        mask: (H, W) bool.
        color: of the lines.
        scale: pixels of the picture per pixel of the mask.
    """
    from skimage.measure import find_contours

    for contour in find_contours(np.pad(mask, 1).astype(np.float32), 0.5):
        points = [((x - 0.5) * scale, (y - 0.5) * scale) for y, x in contour]
        draw.line(points, fill="#000000", width=4, joint="curve")
        draw.line(points, fill=color, width=2, joint="curve")
