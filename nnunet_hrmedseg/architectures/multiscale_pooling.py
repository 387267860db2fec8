"""The multi-scale module delta of Eq. 6-7 of HRMedSeg (arXiv 2504.06205v1, Table 9)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

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
        for size in self.sizes:
            total = total + average_pool(x, size)
        return total

    def extra_repr(self) -> str:
        return f"sizes={self.sizes}"


def average_pool(x: Tensor, size: int) -> Tensor:
    """Average over size x size windows, stride 1; at the border, over what lies inside. (B, C, h, w) -> the same.

    Equal to ``F.avg_pool2d(x, size, 1, size // 2, count_include_pad=False)``, in 2 x size instead of size^2 steps.
    """
    x = F.avg_pool2d(x, (size, 1), 1, (size // 2, 0), count_include_pad=False)
    return F.avg_pool2d(x, (1, size), 1, (0, size // 2), count_include_pad=False)
