"""Count the parameters and multiply-accumulates of a network and its parts, for comparison with published numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from nnunet_hrmedseg.architectures.two_way_transformer import Attention

__all__ = ["disable_projection_fusion", "forward_without_data", "multiply_accumulates", "parameters"]


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
        forward_without_data(network, input_shape)
    flops = {path: sum(operations.values()) for path, operations in counter.get_flop_counts().items()}
    root = type(network).__name__
    counts = {name: flops.get(f"{root}.{name}", 0) // 2 for name, _ in network.named_children()}
    return {"total": counter.get_total_flops() // 2, **counts}


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


def forward_without_data(network: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Run a forward pass in eval mode with fake tensors, so that hooks and counters see each layer."""
    training = network.training
    network.eval()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            network(torch.empty(input_shape))
    finally:
        network.train(training)
