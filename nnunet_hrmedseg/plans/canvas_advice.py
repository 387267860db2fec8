"""What the canvas does to the images of a data set, in words, for the training log."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from nnunet_hrmedseg.errors import format_shape
from nnunet_hrmedseg.plans.overrides import CANVAS_MULTIPLE

__all__ = ["describe_canvas"]

THINNEST = 8  # pixels of the canvas: half a patch of the encoder; what is thinner is at risk (docs/explanation/fixed-canvas.md)


def describe_canvas(images: Sequence[int], canvas: Sequence[int]) -> str:
    """How images become a canvas, and, where one is at least twice the other, what another canvas would give.

    Args:
        images: median (height, width) in pixels.
        canvas: (height, width) in pixels.
    """
    words = f"Images of {format_shape(images)} pixels (the median) are resized to a canvas of {format_shape(canvas)}."
    scales = [of_canvas / of_image for of_canvas, of_image in zip(canvas, images, strict=True)]
    half = [-(-side // (2 * CANVAS_MULTIPLE)) * CANVAS_MULTIPLE for side in canvas]
    if min(scales) >= 2 and prod(half) < prod(canvas):
        part = f"{prod(half) / prod(canvas):.0%}"
        words += f" One of {format_shape(half)} would still hold them, in about {part} of the memory and time."
    elif min(scales) <= 1 / 2:
        words += f" What is thinner than {THINNEST / min(scales):.0f} pixels in them is at risk on so small a canvas."
    else:
        return words
    return words + " How to change it: docs/how-to/choose-a-canvas.md."
