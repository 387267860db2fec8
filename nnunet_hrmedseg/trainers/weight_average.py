"""Exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from nnunet_hrmedseg.errors import PlanError

__all__ = ["WeightAverage"]


class WeightAverage:
    """Exponential moving average of the parameters and floating-point buffers of a network.

    The average starts from the weights that the network has now. Its decay rises with the number of updates t as
    (1 + t) / (10 + t) up to `decay`, so that a short training is not dominated by its first weights. Buffers of whole
    numbers are copied.

    Args:
        network: the network, without the wrappers of torch.compile and DistributedDataParallel.
        decay: part of the average that one update keeps, between 0 and 1; 0.999 averages over about 1,000 updates.

    Raises:
        PlanError: a decay that is not between 0 and 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise PlanError(f"ema_decay is {decay!r}; it must be above 0 and below 1, or None for no average.")
        self.network, self.decay, self.updates = network, decay, 0
        self.trained: dict[str, Tensor] | None = None  # the network's own weights while the average is applied
        self.average = _copied(network.state_dict())

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights of the network, after a step of the optimizer."""
        present = self.network.state_dict()
        names = [name for name, value in present.items() if value.is_floating_point()]
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        average_lists = get_ema_multi_avg_fn(decay)
        average_lists([self.average[name] for name in names], [present[name] for name in names], self.updates)
        for name in present.keys() - set(names):
            self.average[name].copy_(present[name])
        self.updates += 1

    def apply(self) -> None:
        """Give the network the average, until `restore`."""
        if self.trained is None:
            self.trained = _copied(self.network.state_dict())
            self.network.load_state_dict(self.average)

    def restore(self) -> None:
        """Give the network its own weights back."""
        if self.trained is not None:
            self.network.load_state_dict(self.trained)
            self.trained = None

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the network have the average within this context."""
        before = self.trained is not None
        self.apply()
        try:
            yield
        finally:
            if not before:
                self.restore()

    def state(self) -> dict[str, Any]:
        """Return the state that a checkpoint needs in addition to the average, which are its network weights."""
        trained = self.network.state_dict() if self.trained is None else self.trained
        return {"trained_weights": _copied(trained), "updates": self.updates}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`: the network has the average that was saved with it, and gets its own weights back."""
        self.average = _copied(self.network.state_dict())
        self.network.load_state_dict(state["trained_weights"])
        self.updates = state["updates"]


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
