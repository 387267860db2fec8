"""Checks of images against what a dataset or a model expects."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from hrmedseg_onnx.image_check import check_image, warn_of_lost_bits, warn_once
from nnunet_hrmedseg.errors import format_shape

__all__ = ["all_digits", "check_image", "has_palette", "lines_of_pixels", "warn_of_lost_bits", "warn_once"]


def lines_of_pixels(shape: Sequence[float], what_has: str) -> str | None:
    """Describe the problem and the fix if slices are single rows or columns of pixels, or return None.

    Args:
        shape: slices, rows, columns, in the order in which slices pass through the network.
        what_has: owner of the shape, with a verb, for the text: "This case has".
    """
    slices, rows, columns = (f"{side:g}" for side in shape)
    if shape[0] == 1 or min(shape[1:]) > 1:
        return None
    return (
        f"{what_has} {slices} slices of {format_shape((rows, columns))} pixels: a network for images sees one line "
        f"of pixels at a time. The axis of length 1 has to be the one along which the slices follow. nnU-Net takes "
        f"the axis with the largest spacing for it: save images and labels with a spacing that is largest along the "
        f"axis of length 1, or save them as images (.png, .tif), and plan again."
    )


def has_palette(file: str | os.PathLike) -> bool:
    """Return whether an image file (PNG, BMP) has a palette, so that its pixel values are not its colors."""
    import PIL.Image

    try:
        with PIL.Image.open(file, formats=("PNG", "BMP")) as image:
            return image.mode == "P"
    except (OSError, ValueError, SyntaxError):  # the reader of the file reports the error
        return False


def all_digits(value: np.generic) -> str:
    """Return a number with the digits that distinguish it from its neighbors: 1.0 as "1", 0.9999999 unchanged."""
    return np.format_float_positional(value, trim="-") if isinstance(value, np.floating) else str(value)
