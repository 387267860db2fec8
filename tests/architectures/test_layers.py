"""Small layers."""

import pytest
import torch

from nnunet_hrmedseg.architectures.layers import DropPath


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    out = DropPath(0.25)(torch.ones(4000, 3, 2))
    samples = out[:, 0, 0]
    assert torch.equal(out, samples[:, None, None].expand_as(out))
    dropped = samples == 0
    torch.testing.assert_close(samples[~dropped], torch.full_like(samples[~dropped], 4 / 3))
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert samples.mean().item() == pytest.approx(1, abs=0.04)
