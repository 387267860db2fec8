"""Is an image what a dataset or a model expects? The same words with nnU-Net and without: NumPy, at most Pillow."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import cache

import numpy as np

from nnunet_hrmedseg.errors import HRMedSegError, format_shape

__all__ = ["all_digits", "check_image", "has_palette", "lines_of_pixels", "warn_of_lost_bits", "warn_once"]

_PNG = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPES = (2, 6)  # of PNG: RGB, RGBA


def check_image(data: np.ndarray, channels: Sequence[str], expected_by: str) -> None:
    """Refuse what would be learned from, or predicted on, without anybody noticing.

    Args:
        data: (C, ...) as it was read.
        channels: their names.
        expected_by: what names them, with a verb: "dataset.json lists".

    Raises:
        HRMedSegError: another number of channels, NaN or infinite values.
    """
    if len(data) != len(channels):
        advice = "Give every case one file per channel (_0000, _0001, ...) or one RGB file for three channels."
        if len(data) == 4 and len(channels) == 3:
            advice = "A fourth channel is usually transparency (RGBA): save the image as RGB."
        elif len(data) == 3 and len(channels) == 1:
            advice = "Three channels in place of one are usually a grey image saved as RGB: save it as grey."
        count = f"{len(channels)} channel{'' if len(channels) == 1 else 's'}"
        raise HRMedSegError(
            f"Wrong number of channels: {expected_by} {count} ({', '.join(channels)}), this case has {len(data)}. "
            f"{advice}"
        )
    for c, (channel, name) in enumerate(zip(data, channels, strict=True)):
        if not np.isfinite(channel).all():
            nan, infinite = int(np.isnan(channel).sum()), int(np.isinf(channel).sum())
            raise HRMedSegError(
                f"The image holds {nan} NaN and {infinite} infinite values in channel {c} ({name}), of {channel.size} "
                f"values in all. Replace them by a value that means something for this kind of image, for instance "
                f"that of its background."
            )


def lines_of_pixels(shape: Sequence[float], what_has: str) -> str | None:
    """Describe the fault and what to do where slices are single rows or columns of pixels; None where they are not.

    Args:
        shape: slices, rows, columns, in the order that slices go through the network.
        what_has: that shape, with a verb, for the text: "This case has".
    """
    slices, rows, columns = (f"{side:g}" for side in shape)
    if shape[0] == 1 or min(shape[1:]) > 1:
        return None
    return (
        f"{what_has} {slices} slices of {format_shape((rows, columns))} pixels: a network for images sees one line of pixels "
        f"at a time. The axis of length 1 has to be the one along which the slices follow. nnU-Net takes the axis with "
        f"the largest spacing for it: save images and labels with a spacing that is largest along the axis of length "
        f"1, or save them as images (.png, .tif), and plan again."
    )


def warn_of_lost_bits(files: Sequence[str | os.PathLike]) -> None:
    """Warn, once in a process, where an image is a color PNG of 16 bits: Pillow, which nnU-Net reads with, keeps 8."""
    for file in files:
        header = _header(file)
        if header[:8] == _PNG and header[24:25] == b"\x10" and header[25] in _COLOR_TYPES:
            warn_once(
                "There are color PNG images of 16 bits. nnU-Net's reader for PNG keeps the upper 8 bits of each value "
                "(grey PNG images keep all 16). Where the lower bits matter, save the images as .tif, which is read "
                'as it is, and set "file_ending": ".tif" in dataset.json.'
            )
            return


@cache
def warn_once(text: str) -> None:
    """Warn, once in a process: what is warned of is the same for many cases of a dataset.

    Python's own rule, once for each line of code, does not hold where anything changes the filters in between.
    """
    warnings.warn(text, stacklevel=2)


def has_palette(file: str | os.PathLike) -> bool:
    """Return whether an image file (PNG, BMP) has a palette, so that its pixel values are not its colors."""
    import PIL.Image

    try:
        with PIL.Image.open(file, formats=("PNG", "BMP")) as image:
            return image.mode == "P"
    except (OSError, ValueError, SyntaxError):  # whoever reads the file says what is wrong with it
        return False


def _header(file: str | os.PathLike) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read(26)
    except OSError:  # whoever reads the file says what is wrong with it
        return b""


def all_digits(value: np.generic) -> str:
    """Return the number with as many digits as tell it from the next one of its type: 1.0 as 1, 0.9999999 as it is."""
    return np.format_float_positional(value, trim="-") if isinstance(value, np.floating) else str(value)
