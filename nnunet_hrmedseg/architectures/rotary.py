"""Rotary position embedding on the grid of an image or a volume, without complex numbers.

RoFormer (arXiv 2104.09864) turns each pair of neighboring channels by an angle proportional to the position of its
token, so that the dot product of two tokens depends on their offset alone. On a grid the pairs are shared out: on an
image, the first half of them turns with the row and the second half with the column; on a volume, a third with each of
z, y and x.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Rotation", "grid_rotation", "rotate"]

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of the angle of each channel pair at each token, both (N, C/2)."""


def grid_rotation(
    grid: Sequence[int], channels: int, *, base: float = 10000.0, device: torch.device | str | None = None
) -> Rotation:
    """Return the angles of all tokens of a grid in row-major order, as cosine and sine in float32.

    Args:
        grid: tokens along each axis, such as (height, width) or (depth, height, width).
        channels: the width C of the tokens, a multiple of 2 x axes: C/2 pairs, the same number for each axis, whose
            frequencies fall geometrically from 1 towards 1/base.
        base: see `channels`.
        device: device of the result.
    """
    axes = len(grid)
    if channels % (2 * axes):
        raise ValueError(
            f"{axes}D rotary positions need a number of channels that is a multiple of {2 * axes}, got {channels}"
        )
    pairs = channels // (2 * axes)
    frequencies = base ** -(torch.arange(pairs, dtype=torch.float32, device=device) / pairs)
    positions = torch.meshgrid(
        *(torch.arange(size, dtype=torch.float32, device=device) for size in grid), indexing="ij"
    )
    angles = torch.cat([position.flatten()[:, None] * frequencies for position in positions], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the channel pairs (2i, 2i + 1) of x (B, N, C) by the angles of `grid_rotation`."""
    cos, sin = rotation
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
