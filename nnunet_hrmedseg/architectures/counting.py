"""Count the parameters and multiply-accumulates of a network and its parts, for comparison with published numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from nnunet_hrmedseg.architectures.two_way_transformer import Attention

__all__ = ["disable_projection_fusion", "multiply_accumulates", "multiply_accumulates_like_thop", "parameters"]


def parameters(network: nn.Module) -> dict[str, int]:
    """Return the number of parameters of the whole network ("total") and of each of its direct children, by name."""
    counts = {name: sum(p.numel() for p in child.parameters()) for name, child in network.named_children()}
    return {"total": sum(p.numel() for p in network.parameters()), **counts}


def multiply_accumulates(network: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    """Return the multiply-accumulates of one forward pass, total and for each direct child of the network, by name.

    Counted are convolutions and matrix products, attention included, by torch's FlopCounterMode, halved; not counted
    are norms, activations, pooling and interpolation.

    Args:
        network: a network on the CPU. It is counted in eval mode and with fake tensors, which cost no memory.
        input_shape: shape of the input with its batch axis, such as (1, 3, 1024, 1024).
    """
    with FlopCounterMode(display=False) as counter:
        _forward_without_data(network, input_shape)
    flops = {path: sum(operations.values()) for path, operations in counter.get_flop_counts().items()}
    root = type(network).__name__
    counts = {name: flops.get(f"{root}.{name}", 0) // 2 for name, _ in network.named_children()}
    return {"total": counter.get_total_flops() // 2, **counts}


def multiply_accumulates_like_thop(network: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    """Count multiply-accumulates by the rules of thop 0.1.1, which the "FLOPs" of the papers follow.

    thop looks at layers, not at operations: matrix products between activations are not counted, a transposed
    convolution counts kernel_size^2 products for each pixel of its *output* (4 times the true number at kernel 2,
    stride 2), and normalization counts 4 for each element. Arguments and result as for ``multiply_accumulates``.
    """
    counts = dict.fromkeys(["total", *(name for name, _ in network.named_children())], 0)

    def hook_for(part: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            count = _thop_count(layer, output)
            counts["total"] += count
            counts[part] += count

        return hook

    handles = [
        layer.register_forward_hook(hook_for(name))
        for name, part in network.named_children()
        for layer in part.modules()
    ]
    try:
        with disable_projection_fusion(network):
            _forward_without_data(network, input_shape)
    finally:
        for handle in handles:
            handle.remove()
    return counts


@contextmanager
def disable_projection_fusion(network: nn.Module) -> Iterator[None]:
    """Disable the fusion of projections within a context: the operations are then those of the published code."""
    attentions = [module for module in network.modules() if isinstance(module, Attention)]
    before = [attention.fuse_projections for attention in attentions]
    for attention in attentions:
        attention.fuse_projections = False
    try:
        yield
    finally:
        for attention, fuse_projections in zip(attentions, before, strict=True):
            attention.fuse_projections = fuse_projections


def _thop_count(layer: nn.Module, output: Tensor) -> int:
    if isinstance(layer, nn.Linear):
        return layer.in_features * output.numel()
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        return layer.in_channels // layer.groups * prod(layer.kernel_size) * output.numel()
    if isinstance(layer, nn.LayerNorm | nn.BatchNorm2d):
        return 4 * output.numel()
    return 0


def _forward_without_data(network: nn.Module, input_shape: tuple[int, ...]) -> None:
    training = network.training
    network.eval()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            network(torch.empty(input_shape))
    finally:
        network.train(training)
