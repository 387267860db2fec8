"""DGLA compared with a literal O(N^2) evaluation of Eq. 3-5 of HRMedSeg in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_hrmedseg.architectures.linear_attention import EPSILON, DualGatedLinearAttention, phi
from nnunet_hrmedseg.architectures.rotary import grid_rotation

GRID = (3, 5)
CHANNELS, HEADS = 24, 3


def literal_phi(x: Tensor) -> Tensor:
    return torch.where(x > 0, x + 1, x.exp())


def rotation_matrices(grid: tuple[int, int], channels: int) -> Tensor:
    """(N, C, C): 2 x 2 rotations along the diagonal, the first half by the row, the second half by the column."""
    matrices = torch.zeros(grid[0] * grid[1], channels, channels, dtype=torch.float64)
    for y in range(grid[0]):
        for x in range(grid[1]):
            for pair in range(channels // 2):
                position, index = (y, pair) if pair < channels // 4 else (x, pair - channels // 4)
                angle = torch.tensor(position * 10000.0 ** (-index / (channels // 4)), dtype=torch.float64)
                i = 2 * pair
                matrices[y * grid[1] + x, i : i + 2, i : i + 2] = torch.stack(
                    (torch.stack((angle.cos(), -angle.sin())), torch.stack((angle.sin(), angle.cos())))
                )
    return matrices


def literal(attention: DualGatedLinearAttention, x: Tensor, rotary: bool) -> Tensor:
    """Eq. 3-5 for one image x (N, C), sum by sum."""
    n = x.shape[0]
    weight_q, weight_k = attention.query_key.weight.chunk(2)
    bias_q, bias_k = attention.query_key.bias.chunk(2)
    q, k = literal_phi(x @ weight_q.T + bias_q), literal_phi(x @ weight_k.T + bias_k)
    if isinstance(attention.value, torch.nn.Sequential):  # Eq. 4
        down, _, up = attention.value
        v = F.silu(x @ down.weight.T + down.bias) @ up.weight.T + up.bias
    else:
        v = x @ attention.value.weight.T + attention.value.bias
    turn = rotation_matrices(GRID, CHANNELS) if rotary else torch.eye(CHANNELS, dtype=torch.float64).expand(n, -1, -1)
    q_turned = torch.stack([turn[i] @ q[i] for i in range(n)])
    k_turned = torch.stack([turn[j] @ k[j] for j in range(n)])

    out = torch.zeros_like(x)
    for head in range(HEADS):  # Eq. 3
        c = slice(head * CHANNELS // HEADS, (head + 1) * CHANNELS // HEADS)
        for i in range(n):
            normaliser = sum(q[i, c] @ k[j, c] for j in range(n)) + n * EPSILON
            out[i, c] = sum((q_turned[i, c] @ k_turned[j, c]) / normaliser * v[j, c] for j in range(n))
    local = attention.local_encoding(v.T.reshape(1, CHANNELS, *GRID)).reshape(CHANNELS, n).T
    out = out + local
    if attention.exter_gate is not None:  # Eq. 5
        linear = attention.exter_gate[0]
        out = F.silu(x @ linear.weight.T + linear.bias) * out
    return out @ attention.projection.weight.T + attention.projection.bias


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("inter_gate", [True, False])
@pytest.mark.parametrize("exter_gate", [True, False])
def test_equals_literal_equations(rotary, inter_gate, exter_gate):
    torch.manual_seed(0)
    attention = DualGatedLinearAttention(CHANNELS, HEADS, inter_gate=inter_gate, exter_gate=exter_gate).double()
    x = torch.randn(2, GRID[0] * GRID[1], CHANNELS, dtype=torch.float64)
    rotation = None
    if rotary:
        cos, sin = grid_rotation(GRID, CHANNELS)
        rotation = cos.double(), sin.double()
    with torch.no_grad():
        expected = torch.stack([literal(attention, image, rotary) for image in x])
        torch.testing.assert_close(attention(x, GRID, rotation), expected, rtol=1e-6, atol=1e-6)
        without_rotary = torch.stack([literal(attention, image, not rotary) for image in x])
    assert (expected - without_rotary).abs().max() > 1e-4  # rotary positions change the output


@pytest.mark.parametrize("channels, heads", [(24, 24), (24, 5), (6, 3)])
def test_rejects_channels_not_divisible_by_heads(channels, heads):
    with pytest.raises(ValueError, match=f"{channels} channels cannot be split into {heads} heads"):
        DualGatedLinearAttention(channels, heads)


def test_phi_is_elu_plus_1():
    x = torch.cat([torch.linspace(-9, 9, 1001), torch.tensor([-200.0, -1e-9, -0.0, 0.0, 1e-9, 200.0])]).double()
    x.requires_grad_()
    expected = F.elu(x) + 1
    torch.testing.assert_close(phi(x), expected)
    weights = torch.randn(len(x), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(phi(x) @ weights, x)
    (expected_gradient,) = torch.autograd.grad(expected @ weights, x)
    torch.testing.assert_close(gradient, expected_gradient)
