"""Properties of the rotary embedding in 2D and 3D: relative positions, norms, unit frequencies."""

from __future__ import annotations

import itertools

import pytest
import torch

from nnunet_hrmedseg.architectures.rotary import grid_rotation, rotate

H, W, C = 5, 7, 24


@pytest.fixture
def rotated() -> tuple[torch.Tensor, torch.Tensor]:
    """Return one query and one key vector, each placed at every position of the grid: (H, W, C)."""
    torch.manual_seed(0)
    cos, sin = grid_rotation((H, W), C)
    rotation = cos.double(), sin.double()
    q, k = torch.randn(2, 1, 1, C, dtype=torch.float64).expand(-1, 1, H * W, -1)
    return rotate(q, rotation).view(H, W, C), rotate(k, rotation).view(H, W, C)


@pytest.mark.parametrize("heads", [1, 2, 6, 12])
def test_dot_product_depends_only_on_the_offset(rotated, heads):
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


def test_norm_is_kept_and_the_origin_is_not_rotated(rotated):
    q, _ = rotated
    norms = q.norm(dim=-1)
    torch.testing.assert_close(norms, norms[:1, :1].expand_as(norms), rtol=1e-6, atol=0)
    cos, sin = grid_rotation((H, W), C)
    assert cos.shape == sin.shape == (H * W, C // 2)
    assert (cos[0] == 1).all() and (sin[0] == 0).all()


def test_rejects_channels_not_divisible_by_four():
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        grid_rotation((2, 2), 6)


# ---- volumes ----

GRID, WIDTH = (4, 3, 5), 66


@pytest.fixture
def rotated_in_3d() -> tuple[torch.Tensor, torch.Tensor]:
    """Return one query and one key vector, each placed at every position of the grid: (4, 3, 5, WIDTH)."""
    torch.manual_seed(0)
    cos, sin = grid_rotation(GRID, WIDTH)
    q, k = torch.randn(2, 1, 1, WIDTH, dtype=torch.float64).expand(-1, 1, 60, -1)
    return tuple(rotate(x, (cos.double(), sin.double())).view(*GRID, WIDTH) for x in (q, k))


def test_dot_product_depends_only_on_the_offset_in_3d(rotated_in_3d):
    q, k = rotated_in_3d
    for offset in itertools.product((-2, 0, 1), (-1, 0, 2), (-3, 0, 2)):
        here, there = (
            x[tuple(slice(max(0, s * d), n + min(0, s * d)) for d, n in zip(offset, GRID, strict=True))]
            for x, s in ((q, 1), (k, -1))
        )
        products = (here * there).sum(-1).flatten()
        torch.testing.assert_close(products, products[:1].expand_as(products), rtol=0, atol=1e-5)


def test_each_axis_of_a_volume_rotates_a_third_of_the_pairs(rotated_in_3d):
    q, _ = rotated_in_3d
    third = WIDTH // 3
    origin = q[0, 0, 0]
    for axis in range(3):
        at = [0, 0, 0]
        at[axis] = 2
        turned = (q[tuple(at)] != origin).view(3, third)
        assert turned[axis].all()
        assert turned.sum() == third


def test_rejects_channels_not_divisible_in_3d():
    with pytest.raises(ValueError, match="3D .* multiple of 6, got 64"):
        grid_rotation((2, 2, 2), 64)
