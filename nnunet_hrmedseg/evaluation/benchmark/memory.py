"""What a training step keeps in memory: counted tensor by tensor, or as the device and the operating system see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_hrmedseg.evaluation.benchmark.networks import Trainable

__all__ = ["saved_activation_bytes", "saved_activation_bytes_fake"]


def saved_activation_bytes(
    network: nn.Module, loss: Callable[[Any, Tensor], Tensor], image: Tensor, target: Tensor
) -> int:
    """Bytes that forward pass and loss leave for the backward pass; parameters and buffers are not among them.

    image: (B, C, H, W); target: (B, 1, H, W); or with three axes. Both count where they are kept.
    """
    own = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(network(image), target)
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)


def saved_activation_bytes_fake(
    trained: Trainable,
    image_shapes: Sequence[tuple[int, ...]],
    device: torch.device = torch.device("cpu"),  # noqa: B008
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[int]:
    """Return the same for images of each of these shapes, without memory or time: with fake tensors.

    The network can do nothing else afterwards.

    Args:
        trained: network and loss, on the CPU.
        image_shapes: (B, C, H, W), or with three axes.
        device: where the network is trained.
        autocast: makes the context that forward pass and loss run in.
    """
    trained.mode(training=True)
    mode = FakeTensorMode()

    def fake(tensor: Tensor) -> Tensor:
        converted = mode.from_tensor(tensor)
        with mode:  # in which no GPU is needed
            return converted.to(device)

    for module in trained.network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(fake(parameter.data)))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, fake(buffer))
    kept = []
    with mode:
        for images, channels, *size in image_shapes:
            image = torch.zeros(images, channels, *size, device=device)
            target = torch.zeros(images, 1, *size, dtype=torch.int16, device=device)  # as nnU-Net stores labels
            with autocast():
                kept.append(saved_activation_bytes(trained.network, trained.loss, image, target))
    return kept
