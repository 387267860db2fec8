"""The multi-scale module delta of Eq. 6-7 of HRMedSeg (arXiv 2504.06205v1, Table 9)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_hrmedseg.architectures.layers import at_least_float32, without_autocast

__all__ = ["MultiscalePooling"]


class MultiscalePooling(nn.Module):
    """delta(H) = H + sum over k of (pool_k(H) - H), (B, C, h, w) -> the same, without parameters.

    The paper names three parallel pooling operators of PoolFormer (Yu et al. 2022), whose operator is pool(x) - x
    beside the identity, and does not say how they are fused. Of the fusions tried this one trained best
    (docs/benchmarks/ablations.md); averages in which H counts less than the pools blur what is to be drawn.

    Args:
        sizes: odd pool sizes; the paper's are 5, 9 and 13 (Table 9).
    """

    def __init__(self, sizes: Sequence[int] = (5, 9, 13)) -> None:
        super().__init__()
        if not sizes or any(not isinstance(size, int) or size < 1 or size % 2 == 0 for size in sizes):
            raise ValueError(f"pool sizes must be odd positive integers, got {list(sizes)}")
        self.sizes = tuple(sizes)

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            return sum_of_pools(at_least_float32(x), self.sizes, weight=1 - len(self.sizes)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"sizes={self.sizes}"


def sum_of_pools(x: Tensor, sizes: Sequence[int], weight: float) -> Tensor:
    """weight * x + sum over k of the averages over k x k windows, stride 1; at the border, over what lies inside.

    Each average is ``F.avg_pool2d(x, k, 1, k // 2, count_include_pad=False)``, that is, R_k x C_k^T with the matrices
    of the averages along either axis. All sizes go through two matrix products, one for each axis, which is faster
    than pooling in windows, and keeps nothing for the backward pass. (B, C, h, w) -> the same, laid out as tokens.
    """
    batch, channels, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    rows = torch.stack([window_average(height, size, x) for size in sizes], 1)  # (h, sizes, h)
    columns = torch.cat([window_average(width, size, x) for size in sizes], 1)  # (w, sizes * w)
    along_rows = (rows.flatten(0, 1) @ pixels).view(batch * height, -1, channels)  # (B * h, sizes * w, C)
    pixels = pixels.view(batch * height, width, channels)
    pools = torch.baddbmm(pixels, columns.expand(batch * height, -1, -1), along_rows, beta=weight)
    return pools.view(batch, height, width, channels).permute(0, 3, 1, 2)


def window_average(length: int, size: int, like: Tensor) -> Tensor:
    """The averages over windows of an odd size along an axis, as a matrix (length, length) of the type of `like`."""
    positions = torch.arange(length, device=like.device)
    inside = (positions[:, None] - positions).abs() <= size // 2
    return (inside / inside.sum(1, keepdim=True)).to(like.dtype)
