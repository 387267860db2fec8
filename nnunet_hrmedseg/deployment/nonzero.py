"""The non-zero region of an image, as nnU-Net crops to it."""

from __future__ import annotations

import numpy as np

__all__ = ["bounding_box", "nonzero_mask"]


def bounding_box(data: np.ndarray) -> tuple[slice, slice, slice]:
    """The smallest box around all that is not zero in any channel of (C, Z, Y, X); the whole image if all is zero."""
    nonzero = (data != 0).any(axis=0)
    box = []
    for axis in range(3):
        (places,) = np.nonzero(nonzero.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, nonzero.shape[axis]))
    return box[0], box[1], box[2]


def nonzero_mask(data: np.ndarray) -> np.ndarray:
    """(C, Z, Y, X) -> (Z, Y, X) bool: where any channel is not zero, and the zeros that are enclosed on all sides.

    A single slice encloses nothing: its zeros are open to the front and to the back.
    """
    zero = (data == 0).all(axis=0)
    return ~_open_to_the_border(zero)


def _open_to_the_border(free: np.ndarray) -> np.ndarray:
    """The places of `free` (Z, Y, X) from which a path of free places leads out of the array, from face to face."""
    reached = np.zeros_like(free)
    for axis in range(3):
        along, outer = np.moveaxis(reached, axis, 0), np.moveaxis(free, axis, 0)
        along[0], along[-1] = along[0] | outer[0], along[-1] | outer[-1]
    count = -1
    while count != (count := int(reached.sum())):
        # straight on along each axis, there and back, until a round finds nothing new: few rounds, for most shapes
        for axis in range(3):
            along, way = np.moveaxis(reached, axis, 0), np.moveaxis(free, axis, 0)
            for i in range(1, len(along)):
                along[i] |= along[i - 1] & way[i]
            for i in range(len(along) - 2, -1, -1):
                along[i] |= along[i + 1] & way[i]
    return reached
