"""Count the memory that a training step saves for its backward pass, tensor by tensor."""

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
    """Return the bytes that forward pass and loss save for the backward pass, without parameters and buffers.

    Args:
        network: on the device of the image.
        loss: of the network's output and the target.
        image: (B, C, H, W), or with three axes.
        target: (B, 1, H, W), or with three axes. Image and target count if they are saved.
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
    """Return the saved bytes for images of each of these shapes, computed with fake tensors, without memory or time.

    The network cannot be used afterwards.

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
