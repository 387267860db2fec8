"""The Mamba layer, the first version (arXiv 2312.00752): convolution, selective state space, gate.

Parameters are named and shaped as those of ``mamba_ssm.Mamba`` (and of ``mambapy.mamba.MambaBlock``), so that weights
pass between them. The scan runs in mamba_ssm's kernels where that package is installed and the tensors are on a CUDA
device; elsewhere in plain torch (`selective_scan.py`), with the same results.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import ceil, log

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_hrmedseg.architectures.layers import at_least_float32, without_autocast
from nnunet_hrmedseg.architectures.selective_scan import selective_scan

__all__ = ["Mamba", "mamba_kernels"]

STEP_SIZES = (0.001, 0.1)  # delta starts between them, log-uniformly, as in the paper (section 3.6)
MIN_STEP_SIZE = 1e-4


class Mamba(nn.Module):
    """Mixes a sequence of tokens from first to last, in time and memory that grow with its length alone.

    Each of E = expansion x C channels has a state of N numbers that decays and takes in new tokens; how fast, and what
    is read out of it, depends on the token (Eq. 1-2 of the paper, with the input-dependent delta, B and C of its
    Algorithm 2).

    Args:
        channels: width C of the tokens.
        state_size: N.
        conv_width: tokens that the causal convolution in front of the scan sees.
        expansion: E in units of C.
    """

    def __init__(self, channels: int, *, state_size: int, conv_width: int, expansion: int) -> None:
        super().__init__()
        inner, rank = expansion * channels, ceil(channels / 16)
        self.sizes = [rank, state_size, state_size]  # of delta, B and C
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, conv_width, groups=inner, padding=conv_width - 1)
        self.x_proj = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1, state_size + 1.0).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, channels, bias=False)

        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():
            step_size = torch.empty(inner).uniform_(*map(log, STEP_SIZES)).exp_().clamp_min_(MIN_STEP_SIZE)
            self.dt_proj.bias.copy_(step_size.expm1().log())  # what softplus makes the step size of

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, C) -> the same. The scan is in float32 or better under any autocast."""
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        x = F.silu(self.conv1d(x.transpose(1, 2))[..., : tokens.shape[1]]).transpose(1, 2).contiguous()
        with without_autocast(tokens):
            x = at_least_float32(x)
            delta, b, c = self.x_proj(x).split(self.sizes, dim=-1)
            scan = selective_scan_of_mamba_ssm if x.is_cuda and mamba_kernels() else selective_scan
            y = scan(x, F.softplus(self.dt_proj(delta)), -self.A_log.exp(), b, c, self.D)
        return self.out_proj(y * F.silu(z))


@cache
def mamba_kernels() -> Callable[..., Tensor] | None:
    """mamba_ssm's selective scan on CUDA, or None where the package is not installed or cannot be loaded."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except (ImportError, OSError):
        return None
    return torch.compiler.disable(selective_scan_fn)  # compiled already


def selective_scan_of_mamba_ssm(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """``selective_scan`` in mamba_ssm's layout: the sequence is the last axis there."""
    kernels = mamba_kernels()
    assert kernels is not None
    x, delta, b, c = (tensor.transpose(1, 2).contiguous() for tensor in (x, delta, b, c))
    return kernels(x, delta, a, b, c, d).transpose(1, 2)
