"""Precision: autocast, overflow, compilation, export."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_hrmedseg.architectures import HERSeg, HRMedSeg

SMALL = {"embed_dim": 24, "depth": 3, "decoder_dim": 32, "decoder_heads": 2, "decoder_mlp_dim": 32}


def small(network=HRMedSeg, **arguments) -> HRMedSeg:
    torch.manual_seed(0)
    net = network(3, 3, **{**SMALL, "drop_path": 0.0, **arguments})
    for layer in net.encoder.channel_interactive:
        torch.nn.init.ones_(layer.project[-1].weight)
    return net


@pytest.mark.parametrize("network", [HRMedSeg, HERSeg])
@pytest.mark.parametrize("class_mlp", ["shared", "per_class"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_autocast_is_close_to_float32(network, class_mlp, dtype, tolerance):
    net = small(network, class_mlp=class_mlp).eval()
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = net(image)
        with torch.autocast("cpu", dtype):
            logits = net(image)
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_under_autocast(dtype):
    net = small()
    with torch.autocast("cpu", dtype):
        loss = net(torch.randn(2, 3, 32, 32)).square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("network", [HRMedSeg, HERSeg])
def test_float16_stays_finite_at_1024_with_large_activations(network):
    torch.manual_seed(0)
    net = network(3, 2).eval()
    overflows = []

    def naive_sum(layer, inputs, output):
        phi_k = torch.nn.functional.elu(output.chunk(2, dim=-1)[1]) + 1
        overflows.append(phi_k.sum(dim=1, dtype=torch.float16).isinf().any().item())

    for layer in net.encoder.token_interactive:
        layer.attention.query_key.register_forward_hook(naive_sum)
        with torch.no_grad():
            layer.attention.query_key.weight.mul_(200)
    image = torch.randn(1, 3, 1024, 1024) * 1e3
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        logits = net(image)
    assert all(overflows)  # sums over the tokens in float16 would overflow in every block
    assert logits.isfinite().all()
    # nnU-Net's predictor sums logits in float16 with weights up to 10
    assert logits.abs().max() < 6000


def test_float16_stays_finite_for_images_beyond_float16_range():
    net = small().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        assert net(torch.randn(1, 3, 32, 32) * 1e6).isfinite().all()


class NoComplexNumbers(TorchDispatchMode):
    """Fails on any operation that takes or returns a complex tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            assert not (isinstance(leaf, torch.Tensor) and leaf.is_complex()), f"{func} is complex"
        return out


def test_no_complex_tensors():
    with pytest.raises(AssertionError, match="is complex"), NoComplexNumbers():
        torch.view_as_complex(torch.zeros(1, 2))
    net = small()
    with NoComplexNumbers():
        net(torch.randn(1, 3, 32, 32)).sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize("training, recompute", [(False, False), (True, False), (True, True)])
def test_compiled_network_equals_eager(training, recompute):
    """fullgraph requires one graph without breaks; aot_eager traces forward and backward without a C++ compiler."""
    net = small(depth=1, recompute=recompute).train(training)
    image = torch.randn(2, 3, 32, 48)

    def run(function):
        net.zero_grad()
        out = function(image)
        out.square().mean().backward()
        return out.detach(), [p.grad.clone() for p in net.parameters()]

    torch._dynamo.reset()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    expected, expected_gradients = run(net)
    net.load_state_dict(state)
    out, gradients = run(torch.compile(net, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("bfloat16, dtype", [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_on_the_cpu_applies_to_prediction_only(bfloat16, dtype):
    net, image = small(), torch.randn(1, 3, 64, 96)
    net.cpu_bfloat16 = bfloat16
    seen = []
    net.decoder.transformer.layers[0].mlp[0].register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    expected = small().eval()(image)
    net.eval()
    with torch.no_grad():
        logits = net(image)
    net(image)  # with gradients
    net.train()(image)
    assert seen == [dtype, torch.float32, torch.float32]
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().max() < (0.05 * expected.abs().max() if bfloat16 else 1e-5)


def test_networks_do_not_read_the_environment(monkeypatch):
    monkeypatch.setenv("HRMEDSEG_CPU_BFLOAT16", "1")
    assert small().cpu_bfloat16 is False


@pytest.mark.slow
def test_compiles_under_autocast():
    net = small(depth=1).eval()
    image = torch.randn(1, 3, 32, 32)
    torch._dynamo.reset()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")(image)
        expected = net(image)
    torch.testing.assert_close(compiled, expected, rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_graph_can_be_exported():
    """ONNX export is based on torch.export."""
    net = small(depth=1).eval()
    net.cpu_bfloat16 = False
    image = torch.randn(1, 3, 32, 32)
    program = torch.export.export(net, (image,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(image), net(image), rtol=1e-4, atol=1e-5)
    assert not any(
        value.dtype.is_complex
        for node in program.graph.nodes
        for value in tree_leaves(node.meta.get("val"))
        if isinstance(value, torch.Tensor)
    )
