"""Count multiply-accumulates as thop 0.1.1 does, which the "FLOPs" of the papers follow."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from torch import Tensor, nn

from nnunet_hrmedseg.architectures.counting import disable_projection_fusion, forward_without_data


def multiply_accumulates_like_thop(network: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    """Count multiply-accumulates of layers, total and for each direct child.

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
            forward_without_data(network, input_shape)
    finally:
        for handle in handles:
            handle.remove()
    return counts


def _thop_count(layer: nn.Module, output: Tensor) -> int:
    if isinstance(layer, nn.Linear):
        return layer.in_features * output.numel()
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        return layer.in_channels // layer.groups * prod(layer.kernel_size) * output.numel()
    if isinstance(layer, nn.LayerNorm | nn.BatchNorm2d):
        return 4 * output.numel()
    return 0
