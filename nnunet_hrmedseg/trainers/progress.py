"""A progress bar for one epoch: at 1024 x 1024 on a CPU an epoch takes minutes."""

from __future__ import annotations

import sys

from tqdm import tqdm

__all__ = ["EpochProgress"]


class EpochProgress:
    """Show iterations, remaining time and the running mean of the loss. In a log file, a line every half minute."""

    def __init__(self, description: str, total: int, *, show: bool = True):
        terminal = sys.stderr.isatty()
        self.losses: list[float] = []
        self.bar = tqdm(
            desc=description,
            total=total,
            unit="batch",
            disable=not show,
            mininterval=0.5 if terminal else 30,
            maxinterval=1 if terminal else 60,
            leave=False,
        )

    def update(self, loss: float) -> None:
        self.losses.append(loss)
        recent = self.losses[-20:]
        self.bar.set_postfix(loss=f"{sum(recent) / len(recent):.4f}", refresh=False)
        self.bar.update()

    def close(self) -> None:
        self.bar.close()
