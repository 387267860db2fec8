"""The training loop that makes encoders: learning rate, mixed precision, checkpoints, progress and losses.

It trains a module that turns a batch into a loss: distillation and supervised training are such modules. A run can be
killed at any moment and started again with the same command: it continues from the last checkpoint, which is at most
`save_seconds` old, with the same images in the same order.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from nnunet_hrmedseg.encoders.checkpoint import all_finite, load_state, save_state
from nnunet_hrmedseg.encoders.history import History, draw_curve
from nnunet_hrmedseg.encoders.run_folder import CHECKPOINT
from nnunet_hrmedseg.errors import PlanError
from nnunet_hrmedseg.io.processes import Processes
from nnunet_hrmedseg.trainers.schedule import POLY_EXPONENT

__all__ = ["LoopSettings", "run_loop"]

_ROWS_PER_EPOCH = 20  # of losses.csv


@dataclass(frozen=True)
class LoopSettings:
    """Numbers of the loop.

    Attributes:
        epochs: Number of passes over the images.
        steps_per_epoch: Optimizer steps of one pass.
        images_per_step: Images of one step over all processes; for losses.csv.
        learning_rate: Of Adam.
        decay: Factor on the learning rate from one epoch to the next, applied in small parts at every step; None is
            nnU-Net's polynomial schedule down to 0 at the end of the run, (1 - t)^0.9.
        warmup_steps: Number of steps over which the learning rate rises from 0.
        clip_norm: Norm to which larger gradients are scaled down.
        amp: Train in mixed precision on CUDA.
        save_seconds: Maximum time between two checkpoints.
        seed: Seed of order, augmentation and initial weights.
    """

    epochs: int
    steps_per_epoch: int
    images_per_step: int
    learning_rate: float
    decay: float | None
    warmup_steps: int = 20
    clip_norm: float = 12.0
    amp: bool = True
    save_seconds: float = 30.0
    seed: int = 0

    @property
    def steps(self) -> int:
        """Number of optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate at a step, counted from the beginning of the run."""
        if self.decay is None:
            rate = self.learning_rate * (1 - step / self.steps) ** POLY_EXPONENT
        else:
            rate = self.learning_rate * self.decay ** (step / self.steps_per_epoch)
        return rate * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else rate


def run_loop(
    module: nn.Module,
    batches: Callable[[int, int], Iterable[Any]],
    settings: LoopSettings,
    folder: Path,
    group: Processes,
    *,
    validate: Callable[[], float | None] | None = None,
    log: Callable[[str], None] = print,
) -> History:
    """Train `module` in place.

    Args:
        module: On its device; called with a batch, returns the loss. Parameters that need no gradient are not trained.
        batches: Batches of an epoch from a step on: (epoch, first step) -> `steps_per_epoch - first step` batches.
        settings: Numbers of the loop.
        folder: For checkpoint, losses.csv and losses.png. If a checkpoint is there, the run continues from it. A
            failure to write losses.csv or losses.png does not stop the run.
        group: This process and the others.
        validate: Returns the validation loss; called after every epoch, in every process.
        log: Prints one line.

    Returns:
        The losses of the run.

    Raises:
        CheckpointError: The checkpoint is damaged.
        SetupError: A checkpoint cannot be written; the previous one stays intact.
        PlanError: The loss or weights are not finite; these are never saved.
    """
    training = _Training(module, settings, folder, group, validate, log)
    training.resume()
    training.run(batches)
    return training.history


class _Training:
    """One run of the loop, with everything that changes while it runs.

    Attributes:
        step: Number of optimizer steps taken since the beginning of the run.
        seconds_before: Training time before this process continued the run.
        recent: Losses since the last row of losses.csv.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: LoopSettings,
        folder: Path,
        group: Processes,
        validate: Callable[[], float | None] | None,
        log: Callable[[str], None],
    ) -> None:
        self.module, self.settings, self.folder, self.group = module, settings, folder, group
        self.validate, self.log = validate, log
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=settings.learning_rate)
        self.amp = settings.amp and group.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=self.amp)
        self.history = History()
        self.step, self.seconds_before = 0, 0.0
        self.recent: list[torch.Tensor] = []
        self.row_interval = max(1, settings.steps_per_epoch // _ROWS_PER_EPOCH)
        self.unwritable: set[str] = set()  # files whose write errors were logged

    def resume(self) -> None:
        """Seed the random numbers, and continue from the checkpoint if there is one."""
        _seed(self.settings.seed + self.group.rank)
        if not (self.folder / CHECKPOINT).is_file():
            return
        self.history.rows, self.step, self.seconds_before = load_state(
            self.folder, self.module, self.optimizer, self.scaler
        )
        if self.group.count > 1:
            _seed(hash((self.settings.seed, self.group.rank, self.step)) % 2**32)
        self.log(f"Continuing at epoch {self.step / self.settings.steps_per_epoch:.2f} of {self.settings.epochs}.")

    def run(self, batches: Callable[[int, int], Iterable[Any]]) -> None:
        """Train until the last step."""
        self.wrapped = self.group.wrap(self.module).train()
        self.started = self.saved = time.monotonic()
        with self._progress_bar() as progress:
            while self.step < self.settings.steps:
                for batch in batches(*divmod(self.step, self.settings.steps_per_epoch)):
                    self._train_step(batch)
                    progress.update()
                    self._after_step(progress)
        self.module.eval()

    def _train_step(self, batch: Any) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate_at(self.step)
        with torch.autocast(self.group.device.type, enabled=self.amp):
            loss = self.wrapped(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.recent.append(loss.detach().float())
        self.step += 1

    def _after_step(self, progress: tqdm) -> None:
        """Validate, log, save and draw, where it is time for it."""
        end_of_epoch = self.step % self.settings.steps_per_epoch == 0
        if end_of_epoch or self.step % self.row_interval == 0:
            self._add_row(self._validation_loss() if end_of_epoch else None)
            progress.set_postfix(self._latest_losses(), refresh=False)
        if end_of_epoch or time.monotonic() - self.saved > self.settings.save_seconds:
            self._save()
            self.saved = time.monotonic()
        if end_of_epoch and self.group.first:
            self._write_or_log("losses.png", partial(draw_curve, self.history.rows))

    def _validation_loss(self) -> float | None:
        if self.validate is None:
            return None
        self.module.eval()
        loss = self.validate()
        self.module.train()
        return loss

    def _add_row(self, validation_loss: float | None) -> None:
        loss = self.group.mean(torch.stack(self.recent).mean()).item() if self.recent else None
        if loss is not None and not math.isfinite(loss):
            raise self._not_finite("The loss is not finite")
        self.recent.clear()
        self.history.rows.append(
            {
                "epoch": self.step / self.settings.steps_per_epoch,
                "images": self.step * self.settings.images_per_step,
                "learning_rate": self.settings.learning_rate_at(self.step),
                "loss": loss,
                "validation_loss": validation_loss,
                "seconds": self._seconds(),
            }
        )

    def _save(self) -> None:
        # every process checks its own losses without communication: the clocks of the processes differ, so that one
        # may save a step before the others
        if self.recent and not torch.stack(self.recent).isfinite().all():
            raise self._not_finite("The loss is not finite")
        # a gradient that is not finite leaves the loss of its own step finite
        if not all_finite(self.module.state_dict()):
            raise self._not_finite("The weights are not finite")
        if self.group.first:
            state = (self.module, self.optimizer, self.scaler)
            save_state(self.folder, *state, rows=self.history.rows, step=self.step, seconds=self._seconds())
            self._write_or_log("losses.csv", self.history.write)

    def _write_or_log(self, name: str, write: Callable[[Path], None]) -> None:
        try:
            write(self.folder / name)
        except OSError as error:  # on Windows, while another program has the file open
            if name not in self.unwritable:
                self.log(
                    f"{self.folder / name} cannot be written ({error}). The training continues, and tries again at "
                    f"the next checkpoint; if another program has the file open, close it there."
                )
            self.unwritable.add(name)

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def _latest_losses(self) -> dict[str, str]:
        latest = {"loss": f"{self.history.last('loss'):.4g}"}
        if self.history.last("validation_loss") is not None:
            latest["validation"] = f"{self.history.last('validation_loss'):.4g}"
        return latest

    def _progress_bar(self) -> tqdm:
        terminal = sys.stderr.isatty()
        return tqdm(
            desc="Training the encoder",
            total=self.settings.steps,
            initial=self.step,
            unit="batch",
            disable=not self.group.first,
            mininterval=0.5 if terminal else 30,
            maxinterval=1 if terminal else 60,
        )

    def _not_finite(self, problem: str) -> PlanError:
        return not_finite_error(f"{problem} after {self.step} steps.", self.settings.learning_rate, self.amp)


def not_finite_error(problem: str, learning_rate: float, amp: bool) -> PlanError:
    """Return the error for a loss or weights that are not finite, with advice.

    A run can continue in another precision, but not with another learning rate, which is part of what identifies it.
    """
    start_again = f"start again with a smaller --lr (now {learning_rate:g}), in another folder or with --overwrite."
    if not amp:
        return PlanError(f"{problem} {start_again[0].upper()}{start_again[1:]}")
    return PlanError(
        f"{problem} Repeat the command with --no_amp: it continues from the last checkpoint, which is finite. If that "
        f"does not help, {start_again}"
    )


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
