"""The Mamba layer, compared with its equations in float64 and with the weights of other implementations."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_hrmedseg.architectures import mamba as module
from nnunet_hrmedseg.architectures.mamba import Mamba, mamba_kernels, selective_scan_of_mamba_ssm
from nnunet_hrmedseg.architectures.selective_scan import selective_scan
from tests.architectures.test_selective_scan import step_by_step

# state_dict of mamba_ssm.Mamba(d_model=36, d_state=8, d_conv=3, expand=2)
STATE_OF_MAMBA_SSM = {
    "A_log": (72, 8),
    "D": (72,),
    "in_proj.weight": (144, 36),
    "conv1d.weight": (72, 1, 3),
    "conv1d.bias": (72,),
    "x_proj.weight": (19, 72),
    "dt_proj.weight": (72, 3),
    "dt_proj.bias": (72,),
    "out_proj.weight": (36, 72),
}


def layer(channels: int = 36, state_size: int = 8, expansion: int = 2) -> Mamba:
    torch.manual_seed(0)
    return Mamba(channels, state_size=state_size, conv_width=3, expansion=expansion)


def literal(mamba: Mamba, tokens: Tensor) -> Tensor:
    """Figure 3 and Algorithm 2 of arXiv 2312.00752, token by token."""
    x, z = (tokens @ mamba.in_proj.weight.T).chunk(2, dim=-1)
    before = F.pad(x, (0, 0, 2, 0))
    taps = mamba.conv1d.weight[:, 0].T
    x = F.silu(sum(before[:, k : k + x.shape[1]] * taps[k] for k in range(3)) + mamba.conv1d.bias)
    rank, states = mamba.dt_proj.weight.shape[1], mamba.A_log.shape[1]
    delta, b, c = (x @ mamba.x_proj.weight.T).split([rank, states, states], dim=-1)
    delta = F.softplus(delta @ mamba.dt_proj.weight.T + mamba.dt_proj.bias)
    y = step_by_step(x, delta, -mamba.A_log.exp(), b, c, mamba.D)
    return (y * F.silu(z)) @ mamba.out_proj.weight.T


@pytest.mark.parametrize("channels, state_size, expansion", [(36, 8, 2), (66, 4, 2), (96, 4, 1)])
def test_equals_its_equations_step_by_step(channels, state_size, expansion):
    mamba = layer(channels, state_size, expansion).double()
    tokens = torch.randn(2, 70, channels, dtype=torch.float64, requires_grad=True)
    out, expected = mamba(tokens), literal(mamba, tokens)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-12)
    variables = [tokens, *mamba.parameters()]
    weight = torch.randn_like(out)
    for grad, expected_grad in zip(
        torch.autograd.grad(out, variables, weight), torch.autograd.grad(expected, variables, weight), strict=True
    ):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-8, atol=1e-10)


def test_tokens_do_not_depend_on_later_tokens():
    mamba, tokens = layer(), torch.randn(1, 30, 36)
    changed = tokens.clone()
    changed[:, 20:] += 1
    before, after = mamba(tokens), mamba(changed)
    torch.testing.assert_close(after[:, :20], before[:, :20])
    assert (after[:, 20:] - before[:, 20:]).abs().amin(-1).min() > 0


def test_parameters_are_those_of_mamba_ssm():
    assert {name: tuple(value.shape) for name, value in layer().state_dict().items()} == STATE_OF_MAMBA_SSM


def test_weights_of_mambapy_give_the_same_values():
    mambapy = pytest.importorskip("mambapy.mamba")
    other = mambapy.MambaBlock(mambapy.MambaConfig(d_model=36, n_layers=1, d_state=8, d_conv=3, expand_factor=2))
    mamba = layer()
    mamba.load_state_dict(other.state_dict())
    other.load_state_dict(mamba.state_dict())
    tokens = torch.randn(2, 50, 36)
    torch.testing.assert_close(mamba(tokens), other(tokens), rtol=1e-4, atol=1e-6)


def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """Imitate mamba_ssm.ops.selective_scan_interface.selective_scan_fn as documented: u and delta (B, E, L)."""
    assert all(tensor.is_contiguous() for tensor in (u, delta, B, C)) and z is None and not delta_softplus
    u, delta, B, C = (tensor.transpose(1, 2) for tensor in (u, delta, B, C))
    return step_by_step(u, delta, A, B, C, D).transpose(1, 2)


@pytest.fixture
def kernels(monkeypatch):
    """Pretend that mamba_ssm is installed."""
    interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = selective_scan_fn
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    mamba_kernels.cache_clear()
    yield
    mamba_kernels.cache_clear()


def test_mamba_ssm_is_called_with_its_layout(kernels):
    assert mamba_kernels() is not None
    torch.manual_seed(0)
    x, delta, b, c = torch.randn(2, 20, 6), torch.rand(2, 20, 6), torch.randn(2, 20, 4), torch.randn(2, 20, 4)
    tensors = (x, delta, -torch.rand(6, 4), b, c, torch.randn(6))
    torch.testing.assert_close(selective_scan_of_mamba_ssm(*tensors), selective_scan(*tensors))


def test_kernels_are_unavailable_without_mamba_ssm(kernels, monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", None)
    assert mamba_kernels() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_kernels_of_mamba_ssm_give_the_same_values():
    pytest.importorskip("mamba_ssm")
    mamba_kernels.cache_clear()
    mamba, tokens = layer().cuda(), torch.randn(2, 1000, 36, device="cuda")
    expected = mamba.cpu()(tokens.cpu())
    torch.testing.assert_close(mamba.cuda()(tokens).cpu(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_torch_scan_runs_on_cuda(monkeypatch):
    monkeypatch.setattr(module, "mamba_kernels", lambda: None)
    mamba, tokens = layer(), torch.randn(2, 1000, 36)
    expected = mamba(tokens)
    torch.testing.assert_close(mamba.cuda()(tokens.cuda()).cpu(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_autocast_is_close_to_float32(monkeypatch, dtype, tolerance):
    mamba, tokens = layer(), torch.randn(1, 200, 36)
    expected = mamba(tokens)
    scanned = []
    monkeypatch.setattr(module, "selective_scan", lambda *args: scanned.extend(args) or selective_scan(*args))
    with torch.autocast("cpu", dtype):
        out = mamba(tokens)
    assert {tensor.dtype for tensor in scanned} == {torch.float32}
    assert (out - expected).abs().max() < tolerance * expected.abs().max()


def test_step_sizes_start_between_a_thousandth_and_a_tenth():
    step_size = F.softplus(layer(192).dt_proj.bias)
    assert 0.001 * 0.999 <= step_size.min() < 0.002 and 0.05 < step_size.max() <= 0.1 * 1.001
