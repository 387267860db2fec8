"""The multi-scale module delta of Eq. 6-7 of HRMedSeg (arXiv 2504.06205v1, Table 9)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_hrmedseg.architectures.layers import at_least_float32, without_autocast

__all__ = ["MultiscalePooling"]


class MultiscalePooling(nn.Module):
    """delta(H) = H + sum over k of (pool_k(H) - H), (B, C, h, w) -> the same, without parameters.

    The paper names three parallel pooling operators of PoolFormer (Yu et al. 2022), whose operator is pool(x) - x
    beside the identity, and does not say how they are fused. Of the fusions tried this one trained best
    (docs/networks.md); averages in which H counts less than the pools blur what is to be drawn.

    Args:
        sizes: odd pool sizes; the paper's are 5, 9 and 13 (Table 9).
    """

    def __init__(self, sizes: Sequence[int] = (5, 9, 13)) -> None:
        super().__init__()
        if not sizes or any(not isinstance(size, int) or size < 1 or size % 2 == 0 for size in sizes):
            raise ValueError(f"pool sizes must be odd positive integers, got {list(sizes)}")
        self.sizes = tuple(sizes)

    def forward(self, x: Tensor) -> Tensor:
        total = (1 - len(self.sizes)) * x
        for pooled in average_pools(x, self.sizes):
            total = total + pooled
        return total.to(x.dtype)

    def extra_repr(self) -> str:
        return f"sizes={self.sizes}"


def average_pools(x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Averages over size x size windows, stride 1, for each odd size; at the border, over what lies inside.

    Each is equal to ``F.avg_pool2d(x, size, 1, size // 2, count_include_pad=False)``, as differences of running sums:
    the work does not grow with the windows. (B, C, h, w) -> the same in float32 or better, laid out as tokens.
    """
    height, width = x.shape[2:]
    with without_autocast(x):
        pixels = at_least_float32(x).permute(0, 2, 3, 1)
        pools = []
        for size, rows in zip(sizes, window_sums(pixels, sizes, dim=1), strict=True):
            (sums,) = window_sums(rows, [size], dim=2)
            share = 1 / (window_lengths(height, size, sums)[:, None] * window_lengths(width, size, sums))
            pools.append((sums * share[..., None]).permute(0, 3, 1, 2))
    return pools


def window_sums(x: Tensor, sizes: Sequence[int], dim: int) -> list[Tensor]:
    """Sums over windows of each odd size along one axis, stride 1; beyond the border lies 0."""
    length, reach = x.shape[dim], max(sizes) // 2
    border = [0, 0] * (x.ndim - 1 - dim)
    running = F.pad(x, [*border, reach + 1, reach]).cumsum(dim)
    return [
        running.narrow(dim, reach + 1 + size // 2, length) - running.narrow(dim, reach - size // 2, length)
        for size in sizes
    ]


def window_lengths(length: int, size: int, like: Tensor) -> Tensor:
    """How many positions of each window lie inside: (length,), of the type of `like`."""
    positions = torch.arange(length, device=like.device)
    inside = (positions + size // 2).clamp_max(length - 1) - (positions - size // 2).clamp_min(0) + 1
    return inside.to(like.dtype)
