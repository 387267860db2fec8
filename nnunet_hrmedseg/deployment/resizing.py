"""Linear resizing in numpy, with the numbers of torch: images to the canvas, logits back to the image.

Both axes are resized one after the other. Along an axis, every new pixel is the weighted sum of a few old ones, its
taps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Taps", "antialiased_taps", "linear_taps", "resize_to_canvas", "resized_strips"]

STRIP_VALUES = 1 << 22
"""Values of a strip of resized logits, about: 16 MB."""


@dataclass(frozen=True)
class Taps:
    """Along one axis: new pixel i is the sum over k of weight[i, k] * old[index[i, k]]; both (new, taps)."""

    index: np.ndarray
    weight: np.ndarray

    def rows(self, image: np.ndarray) -> np.ndarray:
        """(..., old, X) -> (..., new, X) float32."""
        return self._summed(image, self.weight[:, :, None], axis=-2)

    def columns(self, image: np.ndarray) -> np.ndarray:
        """(..., Y, old) -> (..., Y, new) float32."""
        return self._summed(image, self.weight, axis=-1)

    def _summed(self, image: np.ndarray, weight: np.ndarray, axis: int) -> np.ndarray:
        total = weight[:, 0] * image.take(self.index[:, 0], axis)
        for k in range(1, self.index.shape[1]):
            total += weight[:, k] * image.take(self.index[:, k], axis)
        return total

    def part(self, start: int, stop: int) -> Taps:
        """Of the new pixels from start to stop."""
        return Taps(self.index[start:stop], self.weight[start:stop])


def linear_taps(old: int, new: int) -> Taps:
    """Each new pixel between its two neighbours, however much the axis shrinks: nnU-Net's resampling of logits."""
    # in float32, as torch has it: where an axis is long, its last digits move the weights
    scale = np.float32(old) / np.float32(new)
    position = np.maximum(scale * (np.arange(new, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    lower = np.minimum(position.astype(np.int64), old - 1)
    upper = np.minimum(lower + 1, old - 1)
    share = np.clip(position - lower.astype(np.float32), 0, 1).astype(np.float32)
    return Taps(np.stack((lower, upper), axis=1), np.stack((1 - share, share), axis=1))


def antialiased_taps(old: int, new: int) -> Taps:
    """A triangle over each new pixel, as wide as the pixel where the axis shrinks: how images come to the canvas."""
    # in float32, as torch has it: in the last digits, other pixels come into reach
    scale = np.float32(old) / np.float32(new)
    reach = max(scale, np.float32(1))
    centre = scale * (np.arange(new, dtype=np.float32) + np.float32(0.5))
    first = np.maximum((centre - reach + np.float32(0.5)).astype(np.int64), 0)
    last = np.minimum((centre + reach + np.float32(0.5)).astype(np.int64), old)
    index = first[:, None] + np.arange((last - first).max())
    distance = np.abs(index.astype(np.float32) - centre[:, None] + np.float32(0.5))
    weight = np.maximum(1 - distance * (np.float32(1) / reach), 0)
    weight[index >= last[:, None]] = 0
    weight /= weight.sum(axis=1, keepdims=True)
    return Taps(np.minimum(index, old - 1), weight)


def resize_to_canvas(image: np.ndarray, canvas: Sequence[int]) -> np.ndarray:
    """One slice, (C, Y, X) float32 -> (C, H, W) float32: as the model's training images were resized."""
    height, width = canvas
    if image.shape[1:] == (height, width):
        return image
    rows, columns = antialiased_taps(image.shape[1], height), antialiased_taps(image.shape[2], width)
    return np.stack([columns.columns(rows.rows(channel)) for channel in image])


def resized_strips(logits: np.ndarray, size: Sequence[int]) -> Iterator[tuple[slice, np.ndarray]]:
    """Logits (K, H, W) resized to (K, Y, X), some rows at a time: many classes of a large image do not fit in memory.

    Yields:
        The rows, and their logits (K, rows, X) float32.
    """
    height, width = size
    strip = max(1, STRIP_VALUES // (len(logits) * max(width, logits.shape[2])))
    rows, columns = linear_taps(logits.shape[1], height), linear_taps(logits.shape[2], width)
    same = logits.shape[1:] == (height, width)
    for start in range(0, height, strip):
        stop = min(start + strip, height)
        part = logits[:, start:stop] if same else columns.columns(rows.part(start, stop).rows(logits))
        yield slice(start, stop), part
