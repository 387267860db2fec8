"""Checks of images against the channels that a dataset or a model expects; the same for training and prediction."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np

from hrmedseg_onnx.errors import DataError, format_shape

__all__ = ["MAX_PIXELS", "allow_large_images", "check_image", "warn_of_lost_bits", "warn_once"]

MAX_PIXELS = 20_000 * 20_000
"""Largest number of pixels of an image: a small damaged file may declare any size."""

_PNG = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPES = (2, 6)  # of PNG: RGB, RGBA


def check_image(data: np.ndarray, channels: Sequence[str], expected_by: str) -> None:
    """Check the channels and values of an image, which training and prediction would otherwise silently accept.

    Args:
        data: (C, ...) as read from the files.
        channels: names of the expected channels.
        expected_by: source of these names, with a verb, for the message: "dataset.json lists".

    Raises:
        DataError: another number of channels, no pixels, NaN or infinite values.
    """
    if not data.size:
        raise DataError(f"The image has no pixels, but the shape {format_shape(data.shape)}. Save it again.")
    if len(data) != len(channels):
        advice = "Give every case one file per channel (_0000, _0001, ...) or one RGB file for three channels."
        if len(data) == 4 and len(channels) == 3:
            advice = "A fourth channel is usually transparency (RGBA): save the image as RGB."
        elif len(data) == 3 and len(channels) == 1:
            advice = "Three channels in place of one are usually a gray image saved as RGB: save it as gray."
        count = f"{len(channels)} channel{'' if len(channels) == 1 else 's'}"
        raise DataError(
            f"Wrong number of channels: {expected_by} {count} ({', '.join(channels)}), this case has {len(data)}. "
            f"{advice}"
        )
    for c, (channel, name) in enumerate(zip(data, channels, strict=True)):
        if not np.isfinite(channel).all():
            nan, infinite = int(np.isnan(channel).sum()), int(np.isinf(channel).sum())
            raise DataError(
                f"The image holds {nan} NaN and {infinite} infinite values in channel {c} ({name}), of {channel.size} "
                f"values in all. Replace them by a meaningful value for this kind of image, such as that of its "
                f"background."
            )


def warn_of_lost_bits(files: Sequence[str | os.PathLike]) -> None:
    """Warn, once per process, if an image is a color PNG of 16 bits: Pillow, nnU-Net's reader, keeps only 8 of them."""
    for file in files:
        header = _header(file)
        if header[:8] == _PNG and header[24:25] == b"\x10" and header[25] in _COLOR_TYPES:
            warn_once(
                "There are color PNG images of 16 bits. nnU-Net's reader for PNG keeps the upper 8 bits of each value "
                "(gray PNG images keep all 16). If the lower bits matter, save the images as .tif, which is read "
                'unchanged, and set "file_ending": ".tif" in dataset.json.'
            )
            return


@contextmanager
def allow_large_images() -> Iterator[None]:
    """Within this context Pillow opens images of up to MAX_PIXELS, without a warning."""
    from PIL import Image

    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns above this number and refuses above twice as many
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@cache
def warn_once(text: str) -> None:
    """Issue a warning once per process: many cases of a dataset cause the same one.

    Python's default filter, once per line of code, is reset whenever the filters change.
    """
    warnings.warn(text, stacklevel=2)


def _header(file: str | os.PathLike) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read(26)
    except OSError:  # the reader of the file reports the error
        return b""
