"""The learning rates of our trainers and of the papers' recipe, stretched over however many epochs are trained."""

from __future__ import annotations

from math import cos, floor, pi

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = [
    "LengthAwareLRScheduler",
    "POLY_EXPONENT",
    "PaperLRScheduler",
    "WarmupCosineLRScheduler",
    "WarmupPolyLRScheduler",
]

PAPER_DECAY, PAPER_EPOCHS = 0.98, 200
POLY_EXPONENT = 0.9  # of nnU-Net's PolyLRScheduler
WARMUP_START = 0.01  # part of the learning rate that the warm-up begins with
SHORT_TRAINING = 150  # iterations up to which all parameters have the full rate
SLOWEST = 0.1  # share of the rate of neck and decoder in trainings of at least ten times that length


class FractionalEpochLRScheduler(LRScheduler):
    """Learning rate that depends on the finished share of the training, with a linear warm-up.

    `step(epoch)` takes nnU-Net's current epoch, which may be a fraction.
    """

    def __init__(self, optimizer: Optimizer, num_epochs: int, warmup_epochs: float = 0.0):
        self.initial_lrs = [group["lr"] for group in optimizer.param_groups]
        self.num_epochs, self.warmup_epochs = num_epochs, warmup_epochs
        super().__init__(optimizer)

    def learning_rate(self, initial: float, epoch: float) -> float:
        """After the warm-up, which multiplies it."""
        raise NotImplementedError

    def step(self, epoch: float | None = None) -> None:
        """Set the learning rates for the (fractional) epoch that begins now; None is epoch 0."""
        epoch = 0.0 if epoch is None else float(epoch)
        warmup = 1.0
        if epoch < self.warmup_epochs:
            warmup = WARMUP_START + (1 - WARMUP_START) * epoch / self.warmup_epochs
        for group, initial in zip(self.optimizer.param_groups, self.initial_lrs, strict=True):
            group["lr"] = warmup * self.learning_rate(initial, epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


class WarmupPolyLRScheduler(FractionalEpochLRScheduler):
    """lr = initial lr x (1 - t)^0.9, where t in [0, 1] is the part of the training that is done: nnU-Net's.

    A linear warm-up over the first iterations lets Adam's running averages settle.
    """

    def learning_rate(self, initial: float, epoch: float) -> float:
        return initial * max(0.0, 1 - epoch / self.num_epochs) ** POLY_EXPONENT


class LengthAwareLRScheduler(WarmupPolyLRScheduler):
    """`WarmupPolyLRScheduler` with a lower rate of neck and decoder in longer trainings.

    Parameter groups with `decoder` set get 150 / N of the rate, where N is the number of iterations of the whole
    training, and at least a tenth. N is estimated from the iterations that the optimizer has done and the share of the
    training that they were, because a training with a budget in minutes does not know its number of iterations.
    """

    def __init__(self, optimizer: Optimizer, num_epochs: int, warmup_epochs: float = 0.0):
        self.decoder_parameters = [group.get("decoder", False) for group in optimizer.param_groups]
        super().__init__(optimizer, num_epochs, warmup_epochs)

    def step(self, epoch: float | None = None) -> None:
        super().step(epoch)
        iterations = _iterations_done(self.optimizer)
        part = SLOWEST
        if epoch and iterations:
            length = iterations * self.num_epochs / epoch
            part = min(1.0, max(SLOWEST, SHORT_TRAINING / length))
        for group, decoder_parameters in zip(self.optimizer.param_groups, self.decoder_parameters, strict=True):
            group["lr"] *= part if decoder_parameters else 1.0
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def _iterations_done(optimizer: Optimizer) -> int:
    """Return the number of iterations that Adam has counted, which includes those before a training was continued."""
    for state in optimizer.state.values():
        return int(state["step"])
    return 0


class PaperLRScheduler(FractionalEpochLRScheduler):
    """lr = initial lr x 0.98^floor(200 t): over 200 epochs the papers' decay of 0.98, once per epoch.

    Both papers name the factor, and the published code applies it after every epoch. So the learning rate is constant
    within each of the 200 parts of a training. A shorter or longer training ends at the same learning rate (1.8 % of
    the first).
    """

    def learning_rate(self, initial: float, epoch: float) -> float:
        return initial * PAPER_DECAY ** floor(PAPER_EPOCHS * epoch / self.num_epochs)


class WarmupCosineLRScheduler(FractionalEpochLRScheduler):
    """SegMaFormer's: a linear warm-up, then half a cosine from the initial learning rate to `final_lr`."""

    def __init__(self, optimizer: Optimizer, num_epochs: int, warmup_epochs: float, final_lr: float):
        self.final_lr = final_lr
        super().__init__(optimizer, num_epochs, warmup_epochs)

    def learning_rate(self, initial: float, epoch: float) -> float:
        part = max(0.0, epoch - self.warmup_epochs) / (self.num_epochs - self.warmup_epochs)
        return self.final_lr + (initial - self.final_lr) * (1 + cos(pi * part)) / 2
