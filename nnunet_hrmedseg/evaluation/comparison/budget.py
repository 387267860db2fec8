"""Any nnU-Net trainer class, trained for so many epochs or so many minutes.

Trainers differ in what an epoch costs and in how many they ask for, and learning rates follow the epochs. Two trainers
that get the same minutes keep both their schedules whole: the number of epochs follows from the minutes, and the number
of iterations in each of them from the speed of this training on this machine. Where it is so slow that not even one
iteration fits into each epoch, there are fewer epochs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from time import monotonic

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.optim import Optimizer

from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.io.files import atomic_path, read_json_object, reporting_write_errors, write_atomically
from nnunet_hrmedseg.trainers.base import BaseTrainer

__all__ = ["BUDGET_FILE", "Budget", "with_budget"]

BUDGET_FILE = "budget.json"

SECONDS_PER_EPOCH, FEWEST_EPOCHS, MOST_EPOCHS = 30, 5, 50  # of a training by minutes
FIRST_ITERATIONS = 2  # in the first epoch, when the speed is not known
MOST_GROWTH = 10  # from the longest epoch so far to the next: a few batches may all have waited in a queue
VALIDATION_SHARE = 5  # training iterations to one validation iteration, at least
VALIDATION_TIME = 1 / 3  # of a validation iteration, in training iterations: no backward pass
CONTINUE = "and repeat the command: the training continues from its last checkpoint."
CHECKPOINTS = 20  # in a training, at least: what a kill can cost


@dataclass(frozen=True)
class Budget:
    """The length of a training: a number of epochs, or minutes of wall-clock time.

    Raises:
        HRMedSegError: neither or both are given, or one that is not positive.
    """

    epochs: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.minutes is None):
            raise HRMedSegError(
                f"A training's budget is epochs or minutes, and here are epochs={self.epochs}, minutes={self.minutes}: "
                f"give one of the two."
            )
        if self.epochs is not None and self.epochs < 1:
            raise HRMedSegError(f"A budget of {self.epochs} epochs trains nothing: give 1 or more.")
        if self.minutes is not None and not (isfinite(self.minutes) and self.minutes > 0):
            raise HRMedSegError(f"A budget of {self.minutes} minutes is no length of a training: give more than 0.")

    @property
    def num_epochs(self) -> int:
        if self.minutes is None:
            assert self.epochs is not None
            return self.epochs
        return min(MOST_EPOCHS, max(FEWEST_EPOCHS, int(60 * self.minutes / SECONDS_PER_EPOCH)))

    def __str__(self) -> str:
        value, unit = (self.epochs, "epoch") if self.minutes is None else (self.minutes, "minute")
        return f"{value:g} {unit}{'' if value == 1 else 's'}"


@dataclass
class Record:
    """What each epoch took, as budget.json in the fold's folder says it."""

    budget: Budget
    seconds: list[float] = field(default_factory=list)  # wall clock: loading, validation, checkpoints included
    iterations: list[int] = field(default_factory=list)
    num_epochs: int | None = None  # where there are fewer than the minutes would have

    def write(self, file: Path) -> None:
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
        """What `write` wrote.

        Raises:
            HRMedSegError: it cannot be read, or holds something else.
        """
        content = read_json_object(file, "record of a training's budget")
        try:
            epochs, minutes, num_epochs = content["epochs"], content["minutes"], content.get("num_epochs")
            seconds, iterations = content["seconds_per_epoch"], content["iterations_per_epoch"]
            whole = [*iterations, *(number for number in (epochs, num_epochs) if number is not None)]
            numbers = [*seconds, *([] if minutes is None else [minutes])]
            if len(seconds) != len(iterations) or not all(type(value) is int for value in whole):
                raise ValueError("its epochs, iterations and seconds do not go together")
            if not all(type(value) in (int, float) and 0 <= value and isfinite(value) for value in [*whole, *numbers]):
                raise ValueError("it has values that are no numbers from 0 on")
            if num_epochs == 0:
                raise ValueError("it says that there are no epochs")
            return cls(Budget(epochs, minutes), list(seconds), list(iterations), num_epochs)
        except (KeyError, ValueError, TypeError, OverflowError, HRMedSegError) as error:
            raise HRMedSegError(
                f"{file} is no record of a training's budget ({type(error).__name__}: {error}). Move the folder away "
                f"to begin the training anew."
            ) from error


def with_budget(
    trainer_class: type[nnUNetTrainer], *, epochs: int | None = None, minutes: float | None = None
) -> type[nnUNetTrainer]:
    """A trainer class like the given one, whose training has the given length.

    It has the same name, so that folders, checkpoints and all of nnU-Net's commands take it for the given one. A budget
    by minutes counts wall-clock time from the first iteration to the end of the last epoch: not the preprocessing, not
    the final validation, and not the first iterations of a process where they compile the network. A
    machine on which the first epoch alone takes longer exceeds it.

    Training writes budget.json into the fold's folder: the budget, `training_seconds` and `iterations` so far, and both
    for each epoch. A continued training goes on from there.

    Args:
        trainer_class: nnUNetTrainer or a class derived from it.
        epochs: number of epochs, of as many iterations as the class has.
        minutes: wall-clock time.

    Raises:
        HRMedSegError: not exactly one of epochs and minutes, or one that is not positive. In training: continued from
            a checkpoint of another budget.
    """
    names = {name: getattr(trainer_class, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(trainer_class.__name__, (_WithBudget, trainer_class), {**names, "budget": Budget(epochs, minutes)})


class _StopTraining(Exception):
    """Ends nnU-Net's loop before the number of epochs that it was begun with."""


class _WithBudget(nnUNetTrainer):
    """Goes in front of a trainer class. No `__init__`: nnU-Net records its arguments by the signature it finds."""

    budget: Budget
    save_every: int
    num_val_iterations_per_epoch: int
    optimizer: Optimizer
    fastest_step = inf  # seconds of a training iteration
    compiling_iterations = 0  # of the current epoch: those that compiled the network

    def initialize(self) -> None:
        # after every __init__, before the learning rate is scheduled
        self.num_epochs = self.budget.num_epochs
        self.save_every = min(self.save_every, max(1, self.num_epochs // CHECKPOINTS))
        if self.budget.minutes is not None:
            # HRMedSeg's warm-up is scheduled in parts of an epoch of this length: it fills the first
            self.num_iterations_per_epoch = max(FIRST_ITERATIONS, getattr(self, "warmup_iterations", 0))
        super().initialize()

    def run_training(self) -> None:
        try:
            super().run_training()
        except _StopTraining:
            self.on_train_end()

    def save_checkpoint(self, filename: str) -> None:
        """Save as the trainer does, but let a full disk leave the previous checkpoint whole, as our trainers do."""
        if self.local_rank != 0 or self.disable_checkpointing or isinstance(self, BaseTrainer):
            super().save_checkpoint(filename)
            return
        with reporting_write_errors(Path(filename), CONTINUE), atomic_path(Path(filename)) as temporary:
            super().save_checkpoint(str(temporary))

    def on_train_start(self) -> None:
        self.record = self._record_so_far()
        super().on_train_start()
        if self.record.num_epochs is not None:
            self._train_as(self.record.num_epochs)
        self.most_validation = self.num_val_iterations_per_epoch
        self.record.write(Path(self.output_folder, BUDGET_FILE))
        self.print_to_log_file(f"The budget of this training: {self.budget}, trained as {self.num_epochs} epochs.")
        self.iterated: set[str] = set()
        self.epoch_began = monotonic()

    def _record_so_far(self) -> Record:
        """What the checkpoint's epochs took; those after it are lost and do not count."""
        if self.current_epoch == 0:
            return Record(self.budget)
        file = Path(self.output_folder, BUDGET_FILE)
        record = Record.read(file) if file.is_file() else None
        if record is None or record.budget != self.budget:
            raise HRMedSegError(
                f"{self.output_folder} holds a training {f'of {record.budget}' if record else 'without a budget'} that "
                f"stopped before epoch {self.current_epoch}, and this one is of {self.budget}: finish that one first, "
                f"or move the folder away to begin anew."
            )
        done = slice(self.current_epoch)
        return Record(self.budget, record.seconds[done], record.iterations[done], record.num_epochs)

    def _train_as(self, num_epochs: int) -> None:
        """With another number of epochs than planned, over which the learning rate runs its whole course."""
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
        """As many as fit into an even share of the time that is left, if they go as fast as in the last epoch."""
        share = (budget_seconds - sum(self.record.seconds)) / (self.num_epochs - self.current_epoch)
        # the iteration that compiled took none of these seconds
        epoch, iterations = self.record.seconds[-1], max(1, self.record.iterations[-1] - self.compiling_iterations)
        self.compiling_iterations = 0
        # a continued training has timed no epoch of its own yet: all of the last one was iterations, then
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
        """Whether the iteration that has just ended was the first of its kind in this process, and compiled."""
        first = what not in self.iterated
        self.iterated.add(what)
        return first and self._do_i_compile()

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        self.record.iterations.append(len(train_outputs))
        super().on_train_epoch_end(train_outputs)

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        # validation goes with the training iterations; checkpoints take as long in a short epoch as in a long one
        self.stepping_seconds = monotonic() - self.epoch_began
        super().on_validation_epoch_end(val_outputs)

    def on_epoch_end(self) -> None:
        self.record.seconds.append(0.0)
        # twice: a checkpoint must never know of an epoch that the record lacks, and saving it takes time
        self._time_epoch()
        if self.budget.minutes is not None and len(self.record.seconds) == 1:
            self._shrink_epochs(60 * self.budget.minutes)
        super().on_epoch_end()
        self.epoch_began = self._time_epoch()

    def _shrink_epochs(self, budget_seconds: float) -> None:
        """After the first: the others have one iteration and one validation iteration at least."""
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
            f"The training took {minutes:.2f} minutes: {iterations} iterations in {self.num_epochs} epochs. "
            f"Its budget was {self.budget}."
        )
