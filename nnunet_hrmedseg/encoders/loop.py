"""The training loop that makes encoders: learning rate, mixed precision, checkpoints, progress, losses on disk.

Whatever is trained is a module that turns a batch into a loss; distillation and supervised training are two of them.
A run can be killed at any moment and started again with the same command: it goes on from the last checkpoint, which is
at most `save_seconds` old, with the same images in the same order.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from nnunet_hrmedseg.encoders.curve import draw_curve
from nnunet_hrmedseg.errors import HRMedSegError, format_names, summarize_error
from nnunet_hrmedseg.io.files import (
    atomic_path,
    check_output_dir,
    make_output_dir,
    read_json_object,
    reporting_write_errors,
    write_atomically,
)
from nnunet_hrmedseg.io.processes import Processes
from nnunet_hrmedseg.trainers.schedule import POLY_EXPONENT

__all__ = [
    "CHECKPOINT",
    "CONTINUE",
    "History",
    "LoopSettings",
    "begin_run",
    "check_folder",
    "prepare_folder",
    "run_loop",
]

CHECKPOINT = "checkpoint.pth"
SETTINGS = "run.json"
CONTINUE = "and repeat the command: it continues from the last checkpoint."
_RESULTS = (CHECKPOINT, "losses.csv", "losses.png", "broken_images.txt", "encoder.safetensors", "encoder.json")
_ROWS_PER_EPOCH = 20  # of losses.csv
_COLUMNS = ("epoch", "images", "learning_rate", "loss", "validation_loss", "seconds")
_NUMBERS = {int, float, type(None)}  # what they may hold


@dataclass(frozen=True)
class LoopSettings:
    """Numbers of the loop.

    Attributes:
        epochs: passes over the images.
        steps_per_epoch: optimiser steps of one pass.
        images_per_step: over all processes; for the log.
        learning_rate: of Adam.
        decay: factor on the learning rate from one epoch to the next, applied in small parts at every step; None is
            nnU-Net's polynomial way to 0 at the end of the run, (1 - t)^0.9.
        warmup_steps: over which the learning rate rises from 0.
        clip_norm: gradients are scaled down to this norm.
        amp: mixed precision on CUDA.
        save_seconds: between two checkpoints.
        seed: of order, augmentation and initial weights.
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

    def learning_rate_at(self, step: int) -> float:
        """At a step counted from the beginning of the run."""
        if self.decay is None:
            rate = self.learning_rate * (1 - step / (self.epochs * self.steps_per_epoch)) ** POLY_EXPONENT
        else:
            rate = self.learning_rate * self.decay ** (step / self.steps_per_epoch)
        return rate * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else rate


@dataclass
class History:
    """Rows of losses.csv. The loss of a row is the mean since the row before."""

    rows: list[dict[str, float | None]] = field(default_factory=list)

    def last(self, column: str) -> float | None:
        return next((row[column] for row in reversed(self.rows) if row[column] is not None), None)

    def write(self, file: Path) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: "" if v is None else f"{v:.6g}" for k, v in row.items()} for row in self.rows)
        write_atomically(file, text.getvalue().encode())


def prepare_folder(folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Make the folder of a run, or recognise that it holds the beginning of this very run.

    Args:
        folder: of the run.
        settings: everything that the result depends on, as JSON values; kept in run.json.
        overwrite: begin anew whatever is there.

    Returns:
        whether there is a checkpoint to go on from.

    Raises:
        HRMedSegError: it is a file, cannot be written to, or holds another run, or other files.
    """
    wanted = json.loads(json.dumps(settings))
    check_folder(folder)
    file = make_output_dir(folder) / SETTINGS
    if any(folder.iterdir()):
        if overwrite:
            _remove([folder / old for old in _RESULTS])
        else:
            there = read_json_object(file, "settings of a run")
            different = [key for key in {**there, **wanted} if there.get(key) != wanted.get(key)]
            if different:
                said = format_names(
                    [f"{k} {there.get(k)!r:.200} there and {wanted.get(k)!r:.200} now" for k in different]
                )
                raise HRMedSegError(
                    f"{folder} holds another run ({said}). Give -o another folder, repeat the command that began it to "
                    f"go on with it, or add --overwrite to begin anew."
                )
    with reporting_write_errors(file):
        write_atomically(file, (json.dumps(wanted, indent=2) + "\n").encode())
    return (folder / CHECKPOINT).is_file()


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise HRMedSegError(
                f"{file} cannot be removed to begin anew ({error}). If another program has it open, close it there."
            ) from error


def check_folder(folder: Path) -> None:
    """Check, before anything is loaded and without making it, that a run can have this folder.

    Raises:
        HRMedSegError: it is a file, cannot be made or written to, or holds other files.
    """
    if check_output_dir(folder).is_dir() and any(folder.iterdir()) and not (folder / SETTINGS).is_file():
        raise HRMedSegError(f"{folder} holds other files: give -o a folder that is new or empty.")


def begin_run(folder: Path, settings: Mapping[str, Any], group: Processes, *, overwrite: bool) -> None:
    """`prepare_folder` by the first process, while the others wait.

    Raises:
        HRMedSegError: as `prepare_folder`; or another process, on another machine, does not see the folder.
    """
    if group.first:
        prepare_folder(folder, settings, overwrite=overwrite)
    group.wait()
    if not folder.is_dir():
        raise HRMedSegError(f"{folder} is not there in every process: -o must lie on a disk that all machines share.")


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
        module: on its device; called with a batch, gives the loss. What has no gradient in it is not trained.
        batches: of an epoch, from a step on: (epoch, first step) -> `steps_per_epoch - first step` batches.
        settings: numbers of the loop.
        folder: for checkpoint, losses.csv and losses.png. If a checkpoint is there, the run goes on from it. What is
            only looked at, losses.csv and losses.png, may fail to be written.
        group: this process and the others.
        validate: the validation loss, after every epoch, asked for in every process.
        log: prints one line.

    Raises:
        HRMedSegError: a damaged checkpoint, or one that cannot be written, which leaves the last one whole; a loss or
            weights that are not finite, which are never saved.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=settings.learning_rate)
    amp = settings.amp and group.device.type == "cuda"
    scaler = torch.amp.GradScaler(group.device.type, enabled=amp)
    history, step, spent = History(), 0, 0.0
    _seed(settings.seed + group.rank)
    if (folder / CHECKPOINT).is_file():
        step, spent = _load(folder, module, optimizer, scaler, history, group)
        if group.count > 1:
            _seed(hash((settings.seed, group.rank, step)) % 2**32)
        log(f"Going on at epoch {step / settings.steps_per_epoch:.2f} of {settings.epochs}.")
    wrapped = group.wrap(module).train()

    began = saved = time.monotonic()
    total = settings.epochs * settings.steps_per_epoch
    recent: list[torch.Tensor] = []
    terminal = sys.stderr.isatty()
    progress = tqdm(
        desc="Training the encoder",
        total=total,
        initial=step,
        unit="batch",
        disable=not group.first,
        mininterval=0.5 if terminal else 30,
        maxinterval=1 if terminal else 60,
    )
    per_row = max(1, settings.steps_per_epoch // _ROWS_PER_EPOCH)

    def add_row(validation_loss: float | None = None) -> None:
        loss = group.mean(torch.stack(recent).mean()).item() if recent else None
        if loss is not None and not np.isfinite(loss):
            raise _not_finite(f"The loss is not finite after {step} steps.", settings.learning_rate, amp)
        recent.clear()
        history.rows.append(
            {
                "epoch": step / settings.steps_per_epoch,
                "images": step * settings.images_per_step,
                "learning_rate": settings.learning_rate_at(step),
                "loss": loss,
                "validation_loss": validation_loss,
                "seconds": spent + time.monotonic() - began,
            }
        )

    def save() -> None:
        # in every process, but by itself: their clocks differ, so that one may save a step before the others
        if recent and not torch.stack(recent).isfinite().all():
            raise _not_finite(f"The loss is not finite after {step} steps.", settings.learning_rate, amp)
        # a gradient that is not finite leaves the loss of its own step finite
        if not _finite(module.state_dict()):
            raise _not_finite(f"The weights are not finite after {step} steps.", settings.learning_rate, amp)
        if group.first:
            _save(folder, module, optimizer, scaler, history, step, spent + time.monotonic() - began)
            show("losses.csv", history.write)

    not_shown: set[str] = set()

    def show(name: str, write: Callable[[Path], None]) -> None:
        try:
            write(folder / name)
        except OSError as error:  # on Windows, as long as another program has it open
            if name not in not_shown:
                log(
                    f"{folder / name} cannot be written ({error}). The training goes on, and tries again whenever it "
                    f"saves; if another program has the file open, close it there."
                )
            not_shown.add(name)

    with progress:
        while step < total:
            for batch in batches(*divmod(step, settings.steps_per_epoch)):
                for parameters in optimizer.param_groups:
                    parameters["lr"] = settings.learning_rate_at(step)
                with torch.autocast(group.device.type, enabled=amp):
                    loss = wrapped(batch)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(trained, settings.clip_norm)
                scaler.step(optimizer)
                scaler.update()
                recent.append(loss.detach().float())
                step += 1
                progress.update()
                end_of_epoch = step % settings.steps_per_epoch == 0
                if end_of_epoch or step % per_row == 0:
                    validation_loss = None
                    if end_of_epoch and validate is not None:
                        module.eval()
                        validation_loss = validate()
                        module.train()
                    add_row(validation_loss)
                    shown = {"loss": f"{history.last('loss'):.4g}"}
                    if history.last("validation_loss") is not None:
                        shown["validation"] = f"{history.last('validation_loss'):.4g}"
                    progress.set_postfix(shown, refresh=False)
                if end_of_epoch or time.monotonic() - saved > settings.save_seconds:
                    save()
                    saved = time.monotonic()
                if end_of_epoch and group.first:
                    show("losses.png", partial(draw_curve, history.rows))
    module.eval()
    return history


def _not_finite(what: str, learning_rate: float, amp: bool) -> HRMedSegError:
    """Mixed precision is no part of what makes a run; the learning rate is, so a run cannot go on with another one."""
    anew = f"begin anew with a smaller --lr (now {learning_rate:g}), in another folder or with --overwrite."
    if not amp:
        return HRMedSegError(f"{what} {anew.capitalize()}")
    return HRMedSegError(
        f"{what} Repeat the command with --no_amp: it goes on from the last checkpoint, which is finite. If that does "
        f"not help, {anew}"
    )


def _finite(state: Mapping[str, torch.Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in state.values())


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _save(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    history: History,
    step: int,
    spent: float,
) -> None:
    checkpoint = {
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "rows": history.rows,
        "step": step,
        "seconds": spent,
        "random": torch.get_rng_state(),
    }
    with reporting_write_errors(folder / CHECKPOINT, CONTINUE), atomic_path(folder / CHECKPOINT) as temporary:
        torch.save(checkpoint, temporary)


def _load(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    history: History,
    group: Processes,
) -> tuple[int, float]:
    """Puts the checkpoint into module, optimizer, scaler and history. Returns its step and the seconds that it took."""
    file = folder / CHECKPOINT
    try:
        # mapped: a size that the file does not have is refused by every torch, and nothing is unpacked
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        step, seconds, rows = checkpoint["step"], checkpoint["seconds"], checkpoint["rows"]
        if type(step) is not int or step < 0 or not (type(seconds) is float and 0 <= seconds < math.inf):
            raise ValueError(f"it says step {step!r:.100} after {seconds!r:.100} seconds")
        if not all(row.keys() == {*_COLUMNS} and {*map(type, row.values())} <= _NUMBERS for row in rows):
            raise ValueError("its losses are no numbers")
        module.load_state_dict(checkpoint["module"])
        if not _finite(checkpoint["module"]):
            raise ValueError("its weights are not finite")
        # the options are those of this run; copied, so that nothing stays mapped
        state = {**optimizer.state_dict(), "state": deepcopy(checkpoint["optimizer"]["state"])}
        optimizer.load_state_dict(state)
        if not all(_fits(parameter, values) for parameter, values in optimizer.state.items()):
            raise ValueError("its optimiser was that of other weights")
        if checkpoint["scaler"]:  # empty after steps without mixed precision
            scaler.load_state_dict(checkpoint["scaler"])
        torch.set_rng_state(checkpoint["random"].clone())
        history.rows = rows
        return step, seconds
    except Exception as error:
        raise HRMedSegError(
            f"The checkpoint {file} cannot be read ({type(error).__name__}: {summarize_error(error)}). Add --overwrite to "
            f"begin anew."
        ) from error


def _fits(parameter: torch.Tensor, values: dict[str, torch.Tensor]) -> bool:
    """Whether these can be what Adam knows of a parameter."""
    return values.keys() == {"step", "exp_avg", "exp_avg_sq"} and all(
        value.shape == (() if name == "step" else parameter.shape) for name, value in values.items()
    )
