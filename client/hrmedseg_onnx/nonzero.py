"""The non-zero region of an image, to which nnU-Net crops."""

from __future__ import annotations

import numpy as np

__all__ = ["bounding_box", "nonzero_mask"]


def bounding_box(data: np.ndarray) -> tuple[slice, slice, slice]:
    """Return the bounding box of non-zero values in any channel of (C, Z, Y, X); the whole image if all are zero."""
    nonzero = (data != 0).any(axis=0)
    box = []
    for axis in range(3):
        (places,) = np.nonzero(nonzero.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, nonzero.shape[axis]))
    return box[0], box[1], box[2]


def nonzero_mask(data: np.ndarray) -> np.ndarray:
    """Return the mask (Z, Y, X) of voxels that are non-zero in any channel of (C, Z, Y, X), or enclosed by such voxels.

    A single slice encloses nothing, because its zeros are connected to the front and the back.
    """
    zero = (data == 0).all(axis=0)
    return ~_connected_to_border(zero)


def _connected_to_border(free: np.ndarray) -> np.ndarray:
    """Return the true voxels of `free` (Z, Y, X) that are connected to the border through faces of true voxels."""
    reached = np.zeros_like(free)
    for axis in range(3):
        along, outer = np.moveaxis(reached, axis, 0), np.moveaxis(free, axis, 0)
        along[0], along[-1] = along[0] | outer[0], along[-1] | outer[-1]
    count = -1
    while count != (count := int(reached.sum())):
        # sweep along each axis in both directions until a round adds nothing; most shapes take few rounds
        for axis in range(3):
            along, passable = np.moveaxis(reached, axis, 0), np.moveaxis(free, axis, 0)
            for i in range(1, len(along)):
                along[i] |= along[i - 1] & passable[i]
            for i in range(len(along) - 2, -1, -1):
                along[i] |= along[i + 1] & passable[i]
    return reached
