"""The selective scan compared with its recurrence, token by token in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_hrmedseg.architectures import selective_scan as module
from nnunet_hrmedseg.architectures.selective_scan import selective_scan


def step_by_step(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Evaluate Eq. 2 of arXiv 2312.00752 literally, with h (B, E, N)."""
    h = x.new_zeros(x.shape[0], *a.shape)
    y = []
    for t in range(x.shape[1]):
        h = torch.exp(delta[:, t, :, None] * a) * h + delta[:, t, :, None] * b[:, t, None] * x[:, t, :, None]
        y.append((h * c[:, t, None]).sum(-1) + d * x[:, t])
    return torch.stack(y, 1)


def arguments(batch: int, length: int, channels: int, states: int, *, speed: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x, b, c = normal(batch, length, channels), normal(batch, length, states), normal(batch, length, states)
    delta = speed * F.softplus(normal(batch, length, channels) - 1)
    tensors = (x, delta, -normal(channels, states).exp(), b, c, normal(channels))
    return [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("length", [1, 2, 3, 9, 17, 64, 100])
@pytest.mark.parametrize("tokens_per_block", [1, 9, 1000])
def test_equals_the_recurrence_and_its_gradients(monkeypatch, length, tokens_per_block):
    monkeypatch.setitem(module.ELEMENTS_OF_A_BLOCK, "cpu", 2 * 5 * 3 * tokens_per_block)
    tensors = arguments(2, length, 5, 3)
    y, expected = selective_scan(*tensors), step_by_step(*tensors)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    weight = torch.randn_like(y)
    for grad, expected_grad in zip(
        torch.autograd.grad(y, tensors, weight), torch.autograd.grad(expected, tensors, weight), strict=True
    ):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("speed", [1e-4, 1.0, 1e3])
def test_slow_and_fast_decays_are_exact_in_float32(speed):
    """A scan that divides by cumulative products would overflow here."""
    tensors = arguments(1, 2000, 4, 2, speed=speed)
    narrow = [tensor.detach().float().requires_grad_() for tensor in tensors]
    expected, y = step_by_step(*tensors), selective_scan(*narrow)
    assert (y - expected).abs().max() < 1e-5 * expected.abs().max()
    y.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in narrow)


def test_states_are_not_kept_for_the_backward_pass():
    batch, length, channels, states = 1, 4096, 24, 8
    tensors = [tensor.detach().float().requires_grad_() for tensor in arguments(batch, length, channels, states)]
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        selective_scan(*tensors)
    own = sum(tensor.numel() * 4 for tensor in tensors)
    assert own <= sum(kept.values()) < own + 0.05 * 4 * batch * length * channels * states


def test_scan_passes_the_operator_checks_of_torch():
    """Inputs are not overwritten, shapes and strides match those of the fake kernel, gradients are registered."""
    torch.library.opcheck(
        module.scan_forward,
        tuple(arguments(1, 7, 3, 2)),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    tensors = [tensor.detach() for tensor in arguments(1, 7, 3, 2)]
    gy, states = torch.randn(1, 3, 7, dtype=torch.float64).transpose(1, 2), module.scan_forward(*tensors)[1]
    torch.library.opcheck(module.scan_backward, (gy, *tensors, states), test_utils=("test_schema", "test_faketensor"))
