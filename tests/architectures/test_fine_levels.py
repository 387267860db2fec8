import pytest
import torch

from nnunet_hrmedseg.architectures.fine_levels import FineLevels, pack, packed_channels, unpack


def test_shapes_and_size():
    quarter, eighth = FineLevels(24, (4, 8))(torch.randn(2, 24, 3, 5))
    assert quarter.shape == (2, 4, 12, 20) and eighth.shape == (2, 8, 6, 10)
    assert sum(p.numel() for p in FineLevels(96).parameters()) == 174_752


@pytest.mark.parametrize("widths", [(5,), (4, 8, 16)])
def test_unpacking_returns_the_packed_levels(widths):
    factors = [2**i for i in reversed(range(len(widths)))]
    levels = [torch.randn(2, width, 2 * f, 3 * f) for width, f in zip(widths, factors, strict=True)]
    packed = pack(levels)
    assert packed.shape == (2, sum(packed_channels(widths)), 2, 3)
    assert all(map(torch.equal, unpack(packed, widths), levels))


def test_single_level_is_packed_unchanged():
    level = torch.randn(1, 6, 2, 2)
    assert torch.equal(pack([level]), level)


def test_map_beyond_float16_range_gives_finite_levels():
    levels = FineLevels(8, (4, 8))
    with torch.autocast("cpu", torch.float16):
        maps = levels(1e6 * torch.randn(1, 8, 2, 2))
    assert all(level.isfinite().all() for level in maps)
