"""Gradients laid out as their weights, as DistributedDataParallel wants them."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

__all__ = ["lay_out_gradients_as_weights"]


def lay_out_gradients_as_weights(network: nn.Module) -> None:
    """Give the gradients of the network's parameters the strides of the parameters, from now on.

    Convolutions of maps in the memory format channels_last leave other strides along axes of length 1, where strides
    mean nothing. DistributedDataParallel compares all of them, and warns of slow copies.
    """
    for parameter in network.parameters():
        if parameter.requires_grad and parameter.is_contiguous() and 1 in parameter.shape:
            parameter.register_hook(partial(_with_strides, parameter.stride()))


def _with_strides(strides: tuple[int, ...], gradient: Tensor) -> Tensor:
    if gradient.stride() == strides or not gradient.is_contiguous():
        return gradient
    return gradient.as_strided(gradient.shape, strides)
