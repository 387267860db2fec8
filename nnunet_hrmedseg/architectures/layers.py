"""Small layers shared by encoder and decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DropPath", "LayerNorm2d", "Mlp", "at_least_float32", "to_map", "to_tokens", "without_autocast"]


def without_autocast(x: Tensor) -> torch.autocast:
    """Context in which operations on the device of ``x`` keep the precision of their inputs."""
    return torch.autocast(device_type=x.device.type, enabled=False)


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` with fp16 and bf16 widened to float32; float32 and float64 are returned as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C); or with three axes."""
    return x.movedim(1, -1).flatten(1, -2)


def to_map(x: Tensor, grid: Sequence[int]) -> Tensor:
    """(B, h * w, C) -> (B, C, h, w), memory format channels_last; or with three axes."""
    return x.unflatten(1, grid).movedim(-1, 1)


class LayerNorm2d(nn.Module):
    """Layer normalization over the channels of a feature map: (B, C, h, w) -> (B, C, h, w).

    The statistics are taken in float32 or better, which is also what comes out. A map whose memory format is
    channels_last is normalized in place of its layout, without a copy.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = at_least_float32(x).permute(0, 2, 3, 1)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class Mlp(nn.Sequential):
    """Linear layers of the given widths with an activation between each two: (..., widths[0]) -> (..., widths[-1])."""

    def __init__(self, widths: Sequence[int], activation: Callable[[], nn.Module]) -> None:
        layers: list[nn.Module] = []
        for width_in, width_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(width_in, width_out), activation()]
        super().__init__(*layers[:-1])


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, leaves out a residual branch for whole samples.

    With probability ``rate`` a sample's branch is zeroed; the others are scaled by 1 / (1 - rate), so that the mean
    stays. x: (B, ...) -> (B, ...).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"the rate of stochastic depth must be in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = torch.rand(x.shape[0], *(1,) * (x.ndim - 1), device=x.device) >= self.rate
        return x * (keep.to(x.dtype) / (1.0 - self.rate))

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"
