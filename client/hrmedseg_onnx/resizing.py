"""Linear resizing in numpy, with the results of torch: images to the canvas, logits back to the image.

The axes are resized one after the other. Along an axis, every new pixel is the weighted sum of a few old ones, its
taps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Taps", "antialiased_taps", "linear_taps", "resize_to_canvas", "resized_strips"]

STRIP_VALUES = 1 << 22
"""Approximate number of values in a strip of resized logits: 16 MB."""


@dataclass(frozen=True)
class Taps:
    """Weights along one axis: new pixel i is the sum over k of weight[i, k] * old[index[i, k]]; both (new, taps)."""

    index: np.ndarray
    weight: np.ndarray

    def rows(self, image: np.ndarray) -> np.ndarray:
        """Resize rows: (..., old, X) -> (..., new, X) float32."""
        return self._summed(image, self.weight[:, :, None], axis=-2)

    def columns(self, image: np.ndarray) -> np.ndarray:
        """Resize columns: (..., Y, old) -> (..., Y, new) float32."""
        return self._summed(image, self.weight, axis=-1)

    def _summed(self, image: np.ndarray, weight: np.ndarray, axis: int) -> np.ndarray:
        total = weight[:, 0] * image.take(self.index[:, 0], axis)
        for k in range(1, self.index.shape[1]):
            total += weight[:, k] * image.take(self.index[:, k], axis)
        return total

    def part(self, start: int, stop: int) -> Taps:
        """Return the taps of the new pixels from start to stop."""
        return Taps(self.index[start:stop], self.weight[start:stop])


def linear_taps(old: int, new: int) -> Taps:
    """Return the taps of linear interpolation without antialiasing: nnU-Net's resampling of logits."""
    # float32 as in torch: for long axes, rounding changes the weights
    scale = np.float32(old) / np.float32(new)
    position = np.maximum(scale * (np.arange(new, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    lower = np.minimum(position.astype(np.int64), old - 1)
    upper = np.minimum(lower + 1, old - 1)
    share = np.clip(position - lower.astype(np.float32), 0, 1).astype(np.float32)
    return Taps(np.stack((lower, upper), axis=1), np.stack((1 - share, share), axis=1))


def antialiased_taps(old: int, new: int) -> Taps:
    """Return the taps of linear interpolation with antialiasing: resizing of images to the canvas."""
    # float32 as in torch: rounding changes which pixels are within reach
    scale = np.float32(old) / np.float32(new)
    reach = max(scale, np.float32(1))
    center = scale * (np.arange(new, dtype=np.float32) + np.float32(0.5))
    first = np.maximum((center - reach + np.float32(0.5)).astype(np.int64), 0)
    last = np.minimum((center + reach + np.float32(0.5)).astype(np.int64), old)
    index = first[:, None] + np.arange((last - first).max())
    distance = np.abs(index.astype(np.float32) - center[:, None] + np.float32(0.5))
    weight = np.maximum(1 - distance * (np.float32(1) / reach), 0)
    weight[index >= last[:, None]] = 0
    weight /= weight.sum(axis=1, keepdims=True)
    return Taps(np.minimum(index, old - 1), weight)


def resize_to_canvas(image: np.ndarray, canvas: Sequence[int]) -> np.ndarray:
    """Resize one slice, (C, Y, X) float32 -> (C, H, W) float32, as training images are resized."""
    height, width = canvas
    if image.shape[1:] == (height, width):
        return image
    rows, columns = antialiased_taps(image.shape[1], height), antialiased_taps(image.shape[2], width)
    return np.stack([columns.columns(rows.rows(channel)) for channel in image])


def resized_strips(logits: np.ndarray, size: Sequence[int]) -> Iterator[tuple[slice, np.ndarray]]:
    """Resize logits (K, H, W) to (K, Y, X), some rows at a time: many classes of a large image need too much memory.

    Yields:
        Rows, and their logits (K, rows, X) float32.
    """
    height, width = size
    strip = max(1, STRIP_VALUES // (len(logits) * max(width, logits.shape[2])))
    rows, columns = linear_taps(logits.shape[1], height), linear_taps(logits.shape[2], width)
    same = logits.shape[1:] == (height, width)
    for start in range(0, height, strip):
        stop = min(start + strip, height)
        part = logits[:, start:stop] if same else columns.columns(rows.part(start, stop).rows(logits))
        yield slice(start, stop), part
