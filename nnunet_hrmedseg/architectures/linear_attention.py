"""Dual-gated linear attention (DGLA), Eq. 3-5 of HRMedSeg (arXiv 2504.06205v1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nnunet_hrmedseg.architectures.layers import at_least_float32, to_map, to_tokens, without_autocast
from nnunet_hrmedseg.architectures.rotary import Rotation, rotate

__all__ = ["DualGatedLinearAttention"]

EPSILON = 1e-6


class DualGatedLinearAttention(nn.Module):
    """Attention over N tokens in O(N) time and memory, gated before (values) and after (output).

    Eq. 3  V'_i = sum_j phi(Q_i) phi(K_j)^T V_j^gated / sum_j phi(Q_i) phi(K_j)^T,    phi = ELU + 1
    Eq. 4  V^gated = f(V) W_gate                                                     the inter gate, f = SiLU
    Eq. 5  f(x W_x) V'                                                               the exter gate

    The inter gate goes through C/4 channels: Linear C -> C/4, SiLU, Linear C/4 -> C; without it the values are one
    Linear C -> C. Eq. 3 is evaluated from the right, phi(Q) (phi(K)^T V), for each head on its own, so that no
    N x N matrix ever exists. The paper's second version turns phi(Q) and phi(K) of the numerator by rotary positions;
    the normalizer uses them unturned, which keeps it positive. A 3 x 3 depthwise convolution of the values (locally
    enhanced positional encoding) is added to V'. A Linear C -> C ends the branch.

    Eq. 3 and all that follows run in float32 under any autocast: sums over thousands of tokens leave the range of fp16,
    and the epsilon of the division lies below it.

    Args:
        channels: width C of the tokens; a multiple of 4 and of 2 * num_heads, so that no head splits a rotary pair.
        num_heads: number of heads that C is split into.
        inter_gate: gate the values (Eq. 4).
        exter_gate: gate the output (Eq. 5).
    """

    def __init__(self, channels: int, num_heads: int, *, inter_gate: bool = True, exter_gate: bool = True) -> None:
        super().__init__()
        if channels % 4 or channels % (2 * num_heads):
            raise ValueError(
                f"{channels} channels cannot be split into {num_heads} heads: the number of channels must be a "
                f"multiple of 4 and of 2 x the number of heads"
            )
        self.num_heads = num_heads
        self.query_key = nn.Linear(channels, 2 * channels)
        self.value: nn.Module = nn.Linear(channels, channels)
        if inter_gate:
            self.value = nn.Sequential(
                nn.Linear(channels, channels // 4), nn.SiLU(), nn.Linear(channels // 4, channels)
            )
        self.exter_gate = nn.Sequential(nn.Linear(channels, channels), nn.SiLU()) if exter_gate else None
        self.local_encoding = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels)
        self.projection = nn.Linear(channels, channels)

    def forward(self, x: Tensor, grid: tuple[int, int], rotation: Rotation | None = None) -> Tensor:
        """Attends among the tokens of one image.

        Args:
            x: normalized tokens (B, N, C), row-major.
            grid: (h, w) with h * w = N.
            rotation: angles from ``grid_rotation``, or None for attention without rotary positions.

        Returns:
            (B, N, C) in float32 or better.
        """
        query, key = self.query_key(x).chunk(2, dim=-1)
        value = self.value(x)
        local = to_tokens(self.local_encoding(to_map(value, grid)))
        gate = self.exter_gate(x) if self.exter_gate is not None else None

        with without_autocast(x):
            out = self._linear_attention(
                at_least_float32(query), at_least_float32(key), at_least_float32(value), rotation
            )
            out = out + local
            if gate is not None:
                out = out * gate
            return self.projection(out)

    def _linear_attention(self, query: Tensor, key: Tensor, value: Tensor, rotation: Rotation | None) -> Tensor:
        """Eq. 3: (B, N, C) each -> V' (B, N, C). Both sums over j are means, which leaves their ratio as it is."""
        query, key = phi(query), phi(key)
        normalizer = (query * key.mean(dim=1, keepdim=True)).unflatten(-1, (self.num_heads, -1)).sum(dim=-1)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        summary = self._heads(key).transpose(-2, -1) @ self._heads(value) / value.shape[1]  # (B, heads, d, d)
        out = (self._heads(query) @ summary).transpose(1, 2)  # (B, N, heads, d)
        return (out * (normalizer + EPSILON).reciprocal().unsqueeze(-1)).flatten(2)

    def _heads(self, x: Tensor) -> Tensor:
        """Split (B, N, C) -> (B, heads, N, d)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Phi(torch.autograd.Function):
    """ELU + 1, the kernel of Eq. 3, of a tensor of any shape: exp(min(x, 0)) + max(x, 0), elementwise.

    On a CPU torch's ELU takes seven times as long as the exponential of as many numbers. The derivative is
    min(phi(x), 1), so that the result alone is kept for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.clamp(max=0.0).exp() + x.clamp(min=0.0)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        return gradient * out.clamp(max=1.0)


def phi(x: Tensor) -> Tensor:
    return Phi.apply(x)
