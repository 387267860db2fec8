"""Limit any nnU-Net trainer class to a number of epochs or minutes.

Trainers differ in the cost and in the number of their epochs, and learning rates follow the epochs. Given the same
minutes, two trainers both complete their schedules: the number of epochs follows from the minutes, and the number of
iterations in an epoch from the speed of the training on this machine. If it is too slow for one iteration in each
epoch, there are fewer epochs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from time import monotonic

from filelock import BaseFileLock
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.optim import Optimizer

from nnunet_hrmedseg.errors import CheckpointError, DataError, PlanError
from nnunet_hrmedseg.io.files import atomic_path, read_json_object, reporting_write_errors, write_atomically
from nnunet_hrmedseg.io.locks import release_and_remove
from nnunet_hrmedseg.trainers.base import BaseTrainer, locked_fold

__all__ = ["BUDGET_FILE", "Budget", "with_budget"]

BUDGET_FILE = "budget.json"

SECONDS_PER_EPOCH, FEWEST_EPOCHS, MOST_EPOCHS = 30, 5, 50  # of a training by minutes
FIRST_ITERATIONS = 2  # in the first epoch, when the speed is unknown
MOST_GROWTH = 10  # from the longest epoch so far to the next: the first batches may have waited in a queue
VALIDATION_SHARE = 5  # minimum number of training iterations for each validation iteration
VALIDATION_TIME = 1 / 3  # time of a validation iteration, in training iterations: it has no backward pass
CONTINUE = "and repeat the command: the training continues from its last checkpoint."
CHECKPOINTS = 20  # minimum number in a training, which limits what a killed training loses


@dataclass(frozen=True)
class Budget:
    """The length of a training: a number of epochs, or minutes of wall-clock time.

    Raises:
        PlanError: neither or both are given, or the given one is not positive.
    """

    epochs: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.minutes is None):
            raise PlanError(
                f"The length of a training is epochs or minutes, but epochs={self.epochs} and minutes={self.minutes}: "
                f"give one of the two."
            )
        if self.epochs is not None and self.epochs < 1:
            raise PlanError(f"{self.epochs} epochs: give 1 or more.")
        if self.minutes is not None and not (isfinite(self.minutes) and self.minutes > 0):
            raise PlanError(f"{self.minutes} minutes: give a number greater than 0.")

    @property
    def num_epochs(self) -> int:
        """The number of epochs to plan for."""
        if self.minutes is None:
            assert self.epochs is not None
            return self.epochs
        return min(MOST_EPOCHS, max(FEWEST_EPOCHS, int(60 * self.minutes / SECONDS_PER_EPOCH)))

    def __str__(self) -> str:
        value, unit = (self.epochs, "epoch") if self.minutes is None else (self.minutes, "minute")
        return f"{value:g} {unit}{'' if value == 1 else 's'}"


@dataclass
class Record:
    """Time and iterations of each epoch, as in budget.json of the fold's folder."""

    budget: Budget
    seconds: list[float] = field(default_factory=list)  # wall clock: loading, validation, checkpoints included
    iterations: list[int] = field(default_factory=list)
    num_epochs: int | None = None  # if fewer than planned for the minutes

    def write(self, file: Path) -> None:
        """Write budget.json."""
        content = {
            "epochs": self.budget.epochs,
            "minutes": self.budget.minutes,
            "num_epochs": self.num_epochs,
            "training_seconds": round(sum(self.seconds), 3),
            "iterations": sum(self.iterations),
            "seconds_per_epoch": [round(seconds, 3) for seconds in self.seconds],
            "iterations_per_epoch": self.iterations,
        }
        with reporting_write_errors(file, CONTINUE):
            write_atomically(file, json.dumps(content, indent=2).encode())

    @classmethod
    def read(cls, file: Path) -> Record:
        """Read budget.json.

        Raises:
            DataError: the file cannot be read, or has other content.
        """
        content = read_json_object(file, "record of a training's budget")
        try:
            epochs, minutes, num_epochs = content["epochs"], content["minutes"], content.get("num_epochs")
            seconds, iterations = content["seconds_per_epoch"], content["iterations_per_epoch"]
            whole = [*iterations, *(number for number in (epochs, num_epochs) if number is not None)]
            numbers = [*seconds, *([] if minutes is None else [minutes])]
            if len(seconds) != len(iterations) or not all(type(value) is int for value in whole):
                raise ValueError("its epochs, iterations and seconds do not fit together")
            if not all(type(value) in (int, float) and 0 <= value and isfinite(value) for value in [*whole, *numbers]):
                raise ValueError("it has values other than finite numbers from 0")
            if num_epochs == 0:
                raise ValueError("its number of epochs is 0")
            return cls(Budget(epochs, minutes), list(seconds), list(iterations), num_epochs)
        except (KeyError, ValueError, TypeError, OverflowError, PlanError) as error:
            raise DataError(
                f"{file} is not a record of a training's budget ({type(error).__name__}: {error}). Move the folder "
                f"away to start the training again."
            ) from error


def with_budget(
    trainer_class: type[nnUNetTrainer], *, epochs: int | None = None, minutes: float | None = None
) -> type[nnUNetTrainer]:
    """Derive a trainer class whose training has the given length.

    The class has the same name, so that folders, checkpoints and all of nnU-Net's commands treat it as the original.
    A budget in minutes counts wall-clock time from the first iteration to the end of the last epoch, without
    preprocessing, final validation, and the first iterations of a process if they compile the network. A training
    exceeds the budget if its first epoch alone takes longer.

    Training writes budget.json into the fold's folder: the budget, `training_seconds` and `iterations` so far, and both
    for each epoch. A continued training reads it.

    Args:
        trainer_class: nnUNetTrainer or a class derived from it.
        epochs: number of epochs, each with the iterations of the class.
        minutes: wall-clock time.

    Raises:
        PlanError: not exactly one of epochs and minutes, or one that is not positive.
        CheckpointError: in training, a checkpoint to continue that has another budget.
        SetupError: in training, a fold that another such training is training.
    """
    names = {name: getattr(trainer_class, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(trainer_class.__name__, (_WithBudget, trainer_class), {**names, "budget": Budget(epochs, minutes)})


class _StopTraining(Exception):  # noqa: N818  # not an error to the user
    """End nnU-Net's loop before the number of epochs that it started with."""


class _WithBudget(nnUNetTrainer):
    """Mixin in front of a trainer class. It has no `__init__`, whose signature nnU-Net would record."""

    budget: Budget
    save_every: int
    num_val_iterations_per_epoch: int
    optimizer: Optimizer
    fastest_step = inf  # seconds of a training iteration
    compiling_iterations = 0  # of the current epoch: those that compiled the network
    lock: BaseFileLock | None = None  # of the fold; our trainers have their own

    def initialize(self) -> None:
        # after every __init__, before the learning rate is scheduled
        self.num_epochs = self.budget.num_epochs
        self.save_every = min(self.save_every, max(1, self.num_epochs // CHECKPOINTS))
        if self.budget.minutes is not None:
            # HRMedSeg schedules its warm-up in fractions of this epoch, which the warm-up fills
            self.num_iterations_per_epoch = max(FIRST_ITERATIONS, getattr(self, "warmup_iterations", 0))
        super().initialize()

    def run_training(self) -> None:
        try:
            super().run_training()
        except _StopTraining:
            self.on_train_end()
        finally:
            if self.lock is not None:
                release_and_remove(self.lock)

    def save_checkpoint(self, filename: str) -> None:
        """Save as the trainer does, but keep the previous checkpoint if the disk is full, as our trainers do."""
        if self.local_rank != 0 or self.disable_checkpointing or isinstance(self, BaseTrainer):
            super().save_checkpoint(filename)
            return
        with reporting_write_errors(Path(filename), CONTINUE), atomic_path(Path(filename)) as temporary:
            super().save_checkpoint(str(temporary))

    def on_train_start(self) -> None:
        if self.local_rank == 0 and not isinstance(self, BaseTrainer):
            self.lock = locked_fold(self)
        self.record = self._record_so_far()
        super().on_train_start()
        if self.record.num_epochs is not None:
            self._train_as(self.record.num_epochs)
        self.most_validation = self.num_val_iterations_per_epoch
        self.record.write(Path(self.output_folder, BUDGET_FILE))
        self.print_to_log_file(f"Budget of this training: {self.budget}, planned as {self.num_epochs} epochs.")
        self.iterated: set[str] = set()
        self.epoch_began = monotonic()

    def _record_so_far(self) -> Record:
        """Return the record of the checkpoint's epochs. Later epochs are lost and do not count."""
        if self.current_epoch == 0:
            return Record(self.budget)
        file = Path(self.output_folder, BUDGET_FILE)
        record = Record.read(file) if file.is_file() else None
        if record is None or record.budget != self.budget:
            raise CheckpointError(
                f"{self.output_folder} holds a training {f'of {record.budget}' if record else 'without a budget'} that "
                f"stopped before epoch {self.current_epoch}, but the budget is now {self.budget}. Finish that training "
                f"first, or move the folder away to start again."
            )
        done = slice(self.current_epoch)
        return Record(self.budget, record.seconds[done], record.iterations[done], record.num_epochs)

    def _train_as(self, num_epochs: int) -> None:
        """Change the number of epochs, over which the learning rate completes its schedule."""
        self.num_epochs = self.record.num_epochs = num_epochs
        state = self.optimizer.state_dict()
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        self.optimizer.load_state_dict(state)

    def on_epoch_start(self) -> None:
        if self.current_epoch >= self.num_epochs:
            raise _StopTraining
        if self.budget.minutes is not None:
            if self.record.iterations:
                self.num_iterations_per_epoch = self._iterations_of_next_epoch(60 * self.budget.minutes)
            validation = max(1, self.num_iterations_per_epoch // VALIDATION_SHARE)
            self.num_val_iterations_per_epoch = min(self.most_validation, validation)
        super().on_epoch_start()

    def _iterations_of_next_epoch(self, budget_seconds: float) -> int:
        """Return how many fit into an even share of the remaining time at the speed of the last epoch."""
        share = (budget_seconds - sum(self.record.seconds)) / (self.num_epochs - self.current_epoch)
        # these seconds exclude the iteration that compiled
        epoch, iterations = self.record.seconds[-1], max(1, self.record.iterations[-1] - self.compiling_iterations)
        self.compiling_iterations = 0
        # before a continued training has timed an epoch, count all of the last one as iterations
        stepping = getattr(self, "stepping_seconds", epoch)
        fitting = int((share - (epoch - stepping)) * iterations / stepping)
        return max(1, min(fitting, MOST_GROWTH * max(self.record.iterations)))

    def train_step(self, batch: dict) -> dict:
        began = monotonic()
        output = super().train_step(batch)
        if self._compiles("training"):
            self.compiling_iterations = 1
            self.epoch_began += monotonic() - began
        else:
            self.fastest_step = min(self.fastest_step, monotonic() - began)
        return output

    def validation_step(self, batch: dict) -> dict:
        began = monotonic()
        output = super().validation_step(batch)
        if self._compiles("validation"):
            self.epoch_began += monotonic() - began
        return output

    def _compiles(self, what: str) -> bool:
        """Return whether the finished iteration was the first of its kind in this process, and compiled."""
        first = what not in self.iterated
        self.iterated.add(what)
        return first and self._do_i_compile()

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        self.record.iterations.append(len(train_outputs))
        super().on_train_epoch_end(train_outputs)

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        # validation scales with the training iterations; checkpoints take equally long in short and long epochs
        self.stepping_seconds = monotonic() - self.epoch_began
        super().on_validation_epoch_end(val_outputs)

    def on_epoch_end(self) -> None:
        self.record.seconds.append(0.0)
        # twice: the record must have every epoch that a checkpoint has, and saving the checkpoint takes time
        self._time_epoch()
        if self.budget.minutes is not None and len(self.record.seconds) == 1:
            self._shrink_epochs(60 * self.budget.minutes)
        super().on_epoch_end()
        self.epoch_began = self._time_epoch()

    def _shrink_epochs(self, budget_seconds: float) -> None:
        """Reduce the number of epochs after the first, so that one iteration and its validation fit in each."""
        shortest = self.fastest_step * (1 + VALIDATION_TIME)
        fitting = 1 + max(0, int((budget_seconds - self.record.seconds[0]) / shortest))
        if fitting < self.num_epochs:
            self._train_as(fitting)
            self.print_to_log_file(
                f"One iteration takes {self.fastest_step:.1f} s: {fitting} epochs fit into the budget."
            )

    def _time_epoch(self) -> float:
        now = monotonic()
        self.record.seconds[-1] = now - self.epoch_began
        self.record.write(Path(self.output_folder, BUDGET_FILE))
        return now

    def on_train_end(self) -> None:
        super().on_train_end()
        minutes, iterations = sum(self.record.seconds) / 60, sum(self.record.iterations)
        self.print_to_log_file(
            f"Training took {minutes:.2f} minutes: {iterations} iterations in {self.num_epochs} epochs. "
            f"The budget was {self.budget}."
        )
