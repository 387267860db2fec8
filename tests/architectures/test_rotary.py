"""Properties of the rotary embedding: relative positions, norms, unit frequencies."""

from __future__ import annotations

import pytest
import torch

from nnunet_hrmedseg.architectures.rotary import grid_rotation, rotate

H, W, C = 5, 7, 24


@pytest.fixture
def rotated() -> tuple[torch.Tensor, torch.Tensor]:
    """One query and one key vector, each placed at every position of the grid: (H, W, C)."""
    torch.manual_seed(0)
    cos, sin = grid_rotation(H, W, C)
    rotation = cos.double(), sin.double()
    q, k = torch.randn(2, 1, 1, C, dtype=torch.float64).expand(-1, 1, H * W, -1)
    return rotate(q, rotation).view(H, W, C), rotate(k, rotation).view(H, W, C)


@pytest.mark.parametrize("heads", [1, 2, 6, 12])
def test_dot_product_depends_on_the_offset_alone(rotated, heads):
    q, k = (x.view(H, W, heads, C // heads) for x in rotated)
    for dy in range(-2, 3):
        for dx in range(-3, 4):
            here = q[max(0, dy) : H + min(0, dy), max(0, dx) : W + min(0, dx)]
            there = k[max(0, -dy) : H + min(0, -dy), max(0, -dx) : W + min(0, -dx)]
            products = (here * there).sum(-1).flatten(0, 1)
            torch.testing.assert_close(products, products[:1].expand_as(products), rtol=0, atol=1e-5)


def test_dot_product_changes_with_the_offset(rotated):
    q, k = rotated
    products = torch.einsum("c,yxc->yx", q[0, 0], k)
    assert (products[1:, 0] - products[0, 0]).abs().min() > 1e-3
    assert (products[0, 1:] - products[0, 0]).abs().min() > 1e-3


def test_norm_stays_and_the_origin_is_not_turned(rotated):
    q, _ = rotated
    norms = q.norm(dim=-1)
    torch.testing.assert_close(norms, norms[:1, :1].expand_as(norms), rtol=1e-6, atol=0)
    cos, sin = grid_rotation(H, W, C)
    assert cos.shape == sin.shape == (H * W, C // 2)
    assert (cos[0] == 1).all() and (sin[0] == 0).all()


def test_number_of_channels_must_fit():
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        grid_rotation(2, 2, 6)
