"""Resize images and segmentations to the canvas: every slice to one fixed (H, W), whatever its size and spacing.

nnU-Net resamples to a spacing; HRMedSeg sees the whole image at a fixed size (1024 x 1024 in the papers). Both
functions work slice by slice, so that the memory needed beyond input and output is that of a few slices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

# nnU-Net's label for "background outside the non-zero region of the image", written by `crop_to_nonzero`
OUTSIDE = -1

# Weights closer than this are a tie: far above the rounding error of float32, far below one pixel's share.
TIE = 1e-3


def resize_images_to_canvas(data: np.ndarray, canvas: Sequence[int]) -> np.ndarray:
    """Resize every slice of every channel: bilinear, with anti-aliasing along each axis that shrinks.

    Args:
        data: (C, Z, Y, X), any real dtype.
        canvas: (H, W) in pixels.

    Returns:
        (C, Z, H, W) float32; `data` itself if it already has that size.
    """
    height, width = (int(i) for i in canvas)
    data = data.astype(np.float32, copy=False)
    if data.shape[2:] == (height, width):
        return data
    resized = np.empty((*data.shape[:2], height, width), dtype=np.float32)
    for channel, resized_channel in zip(data, resized, strict=True):
        for z, image in enumerate(channel):
            resized_channel[z] = _resize_linear(torch.from_numpy(np.ascontiguousarray(image)), (height, width)).numpy()
    return resized


def resize_segmentation_to_canvas(seg: np.ndarray, canvas: Sequence[int]) -> np.ndarray:
    """Resize every slice of a label map; each pixel gets the label that covers most of it.

    The indicator of each label is resized as an image is, and the label with the largest weight wins. So no label
    appears that the slice did not have, and labels stay where the resized image shows them. Where two labels have
    the same weight, the label of the nearest source pixel wins; a fixed preference would let objects shrink (or
    grow) whenever an edge falls on the middle of a pixel, as half of all edges do at a factor of two.

    -1 is background as 0 is and competes with 0 only: two halves of the background must not lose to a foreground
    label that is smaller than both together.

    Args:
        seg: (1, Z, Y, X), integer labels of any values.
        canvas: (H, W) in pixels.

    Returns:
        (1, Z, H, W), dtype of `seg`; `seg` itself if it already has that size.
    """
    height, width = (int(i) for i in canvas)
    if seg.shape[2:] == (height, width):
        return seg
    resized = np.empty((*seg.shape[:2], height, width), dtype=seg.dtype)
    for z in range(seg.shape[1]):
        resized[0, z] = _resize_label_slice(seg[0, z], (height, width))
    return resized


def _resize_label_slice(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(Y, X) -> (H, W): the rules of `resize_segmentation_to_canvas` for one slice."""
    present = np.unique(labels).tolist()
    if OUTSIDE not in present:
        return _label_of_largest_weight(labels, present, size)
    outside = labels == OUTSIDE
    competing = sorted({0, *present} - {OUTSIDE})
    resized = _label_of_largest_weight(np.where(outside, 0, labels), competing, size)
    if 0 not in present:
        resized[resized == 0] = OUTSIDE
        return resized
    more_outside = _indicator_on_canvas(outside, size) > _indicator_on_canvas(labels == 0, size)
    resized[(resized == 0) & more_outside.numpy()] = OUTSIDE
    return resized


def _label_of_largest_weight(labels: np.ndarray, present: list[int], size: tuple[int, int]) -> np.ndarray:
    """(Y, X) -> (H, W), a running arg-max over the labels that are `present`, one resized indicator at a time."""
    if len(present) == 1:
        return np.full(size, present[0], dtype=labels.dtype)
    nearest = _nearest(labels, size)
    winner = nearest.copy()
    largest = torch.full(size, -1.0)
    for label in present:
        weight = _indicator_on_canvas(labels == label, size)
        weight += TIE * torch.from_numpy(nearest == label)
        wins = weight > largest
        winner[wins.numpy()] = label
        torch.maximum(largest, weight, out=largest)
    return winner


def _indicator_on_canvas(indicator: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    return _resize_linear(torch.from_numpy(indicator).float(), size)


def _nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(Y, X) -> (H, W): the source pixel that holds the center of each canvas pixel."""
    rows, columns = (((2 * np.arange(new) + 1) * old // (2 * new)) for old, new in zip(labels.shape, size, strict=True))
    return labels[np.ix_(rows, columns)]


def _resize_linear(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(image[None, None], size, mode="bilinear", antialias=True)[0, 0]
