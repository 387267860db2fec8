"""Boxes around the objects of a label map, as a user would draw them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from nnunet_hrmedseg.prompting.prompts import Box, Prompt

__all__ = ["find_boxes", "jitter_box", "prompts_of_slices"]


def find_boxes(mask: np.ndarray, per: str) -> list[Box]:
    """Return the tightest boxes around the True pixels of a mask.

    Args:
        mask: (H, W) bool.
        per: "class" for one box around everything, "component" for one around each connected component, where corners
            count as connected.

    Returns:
        x0, y0, x1, y1 of each box, the edges of its outermost pixels.
    """
    parts = mask.astype(np.uint8) if per == "class" else ndimage.label(mask, np.ones((3, 3)))[0]
    found = (slices for slices in ndimage.find_objects(parts) if slices is not None)
    return [(float(x.start), float(y.start), float(x.stop), float(y.stop)) for y, x in found]


def jitter_box(box: Box, size: tuple[int, int], jitter: float, random: np.random.Generator) -> Box:
    """Move each side of a box at random; the box stays in the image, and at least one pixel of it is left.

    Args:
        box: x0, y0, x1, y1.
        size: Height and width of the image in pixels.
        jitter: Maximum shift in pixels; below 1, as a fraction of the box's width and height.
        random: Draws the shifts, uniformly.
    """
    if not jitter:
        return box
    x0, y0, x1, y1 = box
    reach = np.array([x1 - x0, y1 - y0] * 2) * jitter if jitter < 1 else np.full(4, jitter)
    x0, y0, x1, y1 = (np.array(box) + random.uniform(-reach, reach)).tolist()
    height, width = size
    x0, y0 = min(max(x0, 0.0), width - 1.0), min(max(y0, 0.0), height - 1.0)
    return x0, y0, max(min(x1, float(width)), x0 + 1), max(min(y1, float(height)), y0 + 1)


def prompts_of_slices(
    masks: Mapping[str, np.ndarray], per: str, jitter: float, random: np.random.Generator
) -> list[list[Prompt]]:
    """Return boxes around the classes of a case for each slice.

    Args:
        masks: Class -> mask (Z, H, W).
        per: See `find_boxes`.
        jitter: See `jitter_box`.
        random: See `jitter_box`.
    """
    depth, height, width = next(iter(masks.values())).shape
    return [
        [
            Prompt(jitter_box(box, (height, width), jitter, random), category=name)
            for name, mask in masks.items()
            for box in find_boxes(mask[z], per)
        ]
        for z in range(depth)
    ]
