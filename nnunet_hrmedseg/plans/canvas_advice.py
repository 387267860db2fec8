"""Describe what the canvas does to the images of a dataset, for the training log."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from nnunet_hrmedseg.errors import format_shape
from nnunet_hrmedseg.plans.overrides import CANVAS_MULTIPLE

__all__ = ["describe_canvas"]

THINNEST = 8  # pixels of the canvas, half a patch of the encoder; thinner objects may be missed


def describe_canvas(images: Sequence[int], canvas: Sequence[int], planner: str) -> str:
    """Return how images are resized, and what another canvas would change if the two differ by a factor of two or more.

    Args:
        images: median (height, width) in pixels.
        canvas: (height, width) in pixels.
        planner: the planner whose plans can be edited.
    """
    text = f"Images of {format_shape(images)} pixels (the median) are resized to a canvas of {format_shape(canvas)}."
    scales = [of_canvas / of_image for of_canvas, of_image in zip(canvas, images, strict=True)]
    half = [-(-side // (2 * CANVAS_MULTIPLE)) * CANVAS_MULTIPLE for side in canvas]
    if min(scales) >= 2 and prod(half) < prod(canvas):
        part = f"{prod(half) / prod(canvas):.0%}"
        text += f" A canvas of {format_shape(half)} would still hold them, with about {part} of the memory and time."
    elif min(scales) <= 1 / 2:
        text += f" Objects thinner than {THINNEST / min(scales):.0f} pixels in the image may be missed on this canvas."
    else:
        return text
    # stock plans have no place for a canvas: what is edited there has no effect
    return text + f" To change it, set patch_size of the configuration in the plans that -pl {planner} writes."
