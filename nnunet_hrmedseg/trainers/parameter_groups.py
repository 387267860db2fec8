"""The parameter groups of the optimizer."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["encoder_decoder_groups"]


def encoder_decoder_groups(
    network: nn.Module, learning_rate: float, encoder_learning_rate: float | None = None
) -> list[dict[str, Any]]:
    """Return two parameter groups for an optimizer: the encoder, and neck and decoder (with `decoder` set to True).

    One after the other the groups are `network.parameters()`: the state of an optimizer refers to parameters by their
    order.

    Args:
        network: a network whose encoder is named `encoder`, without the wrappers of DistributedDataParallel and
            torch.compile.
        learning_rate: initial learning rate.
        encoder_learning_rate: initial learning rate of the encoder; default: `learning_rate`.
    """
    if encoder_learning_rate is None:
        encoder_learning_rate = learning_rate
    encoder: list[nn.Parameter] = []
    decoder: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        (encoder if name.startswith("encoder.") else decoder).append(parameter)
    return [
        {"params": encoder, "lr": encoder_learning_rate, "decoder": False},
        {"params": decoder, "lr": learning_rate, "decoder": True},
    ]
