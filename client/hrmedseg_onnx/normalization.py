"""nnU-Net's normalizations in numpy, bitwise equal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hrmedseg_onnx.errors import DataError
from hrmedseg_onnx.nonzero import nonzero_mask
from hrmedseg_onnx.sidecar import Normalization

__all__ = ["normalize"]

SMALLEST_DIVISOR = 1e-8


def normalize(data: np.ndarray, schemes: Sequence[Normalization]) -> None:
    """Normalize a cropped image (C, Z, Y, X) float32 in place, each channel by its scheme.

    Raises:
        DataError: values below 0 or above 255 for RGBTo01Normalization.
    """
    # before normalization changes which values are zero
    inside = nonzero_mask(data) if any(scheme.use_mask for scheme in schemes) else None
    for c, (channel, normalization) in enumerate(zip(data, schemes, strict=True)):
        if normalization.scheme == "ZScoreNormalization":
            _z_score(channel, inside if normalization.use_mask else None)
        elif normalization.scheme == "CTNormalization":
            assert normalization.intensities is not None
            _ct(channel, normalization.intensities)
        elif normalization.scheme == "RescaleTo01Normalization":
            channel -= channel.min()
            channel /= max(channel.max(), SMALLEST_DIVISOR)
        elif normalization.scheme == "RGBTo01Normalization":
            _rgb(channel, c)


def _z_score(channel: np.ndarray, inside: np.ndarray | None) -> None:
    values = channel if inside is None else channel[inside]
    # the float32 mean of a constant has a rounding error, which division by a tiny deviation would amplify
    if values.size == 0 or values.min() == values.max():
        channel[...] = 0
        return
    mean, deviation = values.mean(), max(values.std(), SMALLEST_DIVISOR)
    if inside is None:
        channel -= mean
        channel /= deviation
    else:
        channel[inside] = (values - mean) / deviation


def _ct(channel: np.ndarray, intensities: dict[str, float]) -> None:
    np.clip(channel, intensities["percentile_00_5"], intensities["percentile_99_5"], out=channel)
    channel -= intensities["mean"]
    channel /= max(intensities["std"], SMALLEST_DIVISOR)


def _rgb(channel: np.ndarray, number: int) -> None:
    low, high = channel.min(), channel.max()
    if low < 0 or high > 255:
        raise DataError(
            f"Channel {number} holds values from {low:g} to {high:g}; the model was trained with 8-bit images and "
            f"RGBTo01Normalization, which takes 0 to 255. Save the image with 8 bits per channel."
        )
    channel /= 255.0
