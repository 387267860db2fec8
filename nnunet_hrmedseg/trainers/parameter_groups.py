"""What of a network the optimiser moves at which rate."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

__all__ = ["encoder_decoder_groups", "split_groups_of_older_checkpoints"]


def encoder_decoder_groups(
    network: nn.Module, learning_rate: float, encoder_learning_rate: float | None = None
) -> list[dict[str, Any]]:
    """Two parameter groups for an optimiser: the encoder, and with ``decoder_parameters`` set neck and decoder.

    The encoder has the same learning rate unless its own is given. One after the other the groups are
    ``network.parameters()``: the state of an optimizer refers to parameters by their order.
    """
    network = getattr(network, "_orig_mod", network)  # what torch.compile wraps
    if encoder_learning_rate is None:
        encoder_learning_rate = learning_rate
    encoder: list[nn.Parameter] = []
    behind: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        (encoder if name.startswith("encoder.") else behind).append(parameter)
    return [
        {"params": encoder, "lr": encoder_learning_rate, "behind_encoder": False},
        {"params": behind, "lr": learning_rate, "behind_encoder": True},
    ]


def split_groups_of_older_checkpoints(optimizer: Optimizer) -> None:
    """Lets it load the state of one that had all parameters in one group, as our trainers' had."""

    def split(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        saved = state["param_groups"]
        if len(saved) != 1 or len(saved[0]["params"]) != sum(sizes):
            return None
        numbers = iter(saved[0]["params"])
        groups = [{**saved[0], "params": [next(numbers) for _ in range(size)]} for size in sizes]
        return {**state, "param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(split)
