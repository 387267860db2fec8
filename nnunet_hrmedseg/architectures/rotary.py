"""Rotary position embedding on an image grid, without complex numbers.

RoFormer (arXiv 2104.09864) turns each pair of neighbouring channels by an angle proportional to the position of its
token, so that the dot product of two tokens depends on their offset alone. On a grid, the first half of the pairs turns
with the row and the second half with the column.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Rotation", "grid_rotation", "rotate"]

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of the angle of each channel pair at each token, both (N, C/2)."""


def grid_rotation(
    height: int, width: int, channels: int, *, base: float = 10000.0, device: torch.device | str | None = None
) -> Rotation:
    """Angles of all tokens of a height x width grid in row-major order, as cosine and sine in float32.

    channels: the width C of the tokens, a multiple of 4: C/2 pairs, C/4 frequencies per image axis, which fall
    geometrically from 1 towards 1/base.
    """
    if channels % 4:
        raise ValueError(f"2D rotary positions need a number of channels that is a multiple of 4, got {channels}")
    frequencies = base ** -(torch.arange(channels // 4, dtype=torch.float32, device=device) / (channels // 4))
    rows = torch.arange(height, dtype=torch.float32, device=device)[:, None] * frequencies
    columns = torch.arange(width, dtype=torch.float32, device=device)[:, None] * frequencies
    angles = torch.cat((rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)), dim=-1).flatten(
        0, 1
    )
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turns the channel pairs (2i, 2i + 1) of x (B, N, C) by the angles of ``grid_rotation``."""
    cos, sin = rotation
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
