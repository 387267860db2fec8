"""Save and load the state of a run, so that it continues exactly where it stopped."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnunet_hrmedseg.encoders.history import COLUMNS
from nnunet_hrmedseg.encoders.run_folder import CHECKPOINT, CONTINUE
from nnunet_hrmedseg.errors import CheckpointError, summarize_error
from nnunet_hrmedseg.io.files import atomic_path, reporting_write_errors

__all__ = ["all_finite", "load_state", "save_state"]

_CELL_TYPES = {int, float, type(None)}
"""Types of the values in the rows of losses.csv."""


def save_state(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    *,
    rows: Sequence[Mapping[str, float | None]],
    step: int,
    seconds: float,
) -> None:
    """Write checkpoint.pth, which replaces the previous one only once it is complete.

    Args:
        folder: Output folder of the run.
        module: The trained module.
        optimizer: Its optimizer.
        scaler: Gradient scaler of mixed precision.
        rows: Rows of losses.csv.
        step: Number of optimizer steps taken.
        seconds: Training time so far.

    Raises:
        SetupError: The file cannot be written; the previous checkpoint stays intact.
    """
    checkpoint = {
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "rows": list(rows),
        "step": step,
        "seconds": seconds,
        "random": torch.get_rng_state(),
    }
    with reporting_write_errors(folder / CHECKPOINT, CONTINUE), atomic_path(folder / CHECKPOINT) as temporary:
        torch.save(checkpoint, temporary)


def load_state(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> tuple[list[dict[str, float | None]], int, float]:
    """Load checkpoint.pth into module, optimizer, scaler and torch's random number generator.

    Returns:
        The rows of losses.csv, the number of optimizer steps taken, and the training time in seconds.

    Raises:
        CheckpointError: The file is damaged, not finite, or of another network.
    """
    file = folder / CHECKPOINT
    try:
        # mapped: every version of torch refuses a size that the file does not have, and nothing is unpacked
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        step, seconds, rows = checkpoint["step"], checkpoint["seconds"], checkpoint["rows"]
        _check_progress(step, seconds, rows)
        module.load_state_dict(checkpoint["module"])
        if not all_finite(checkpoint["module"]):
            raise ValueError("its weights are not finite")
        _load_optimizer(optimizer, checkpoint["optimizer"])
        if checkpoint["scaler"]:  # empty after steps without mixed precision
            scaler.load_state_dict(checkpoint["scaler"])
        torch.set_rng_state(checkpoint["random"].clone())
        return rows, step, seconds
    except Exception as error:
        raise CheckpointError(
            f"The checkpoint {file} cannot be read ({type(error).__name__}: {summarize_error(error)}). Add --overwrite "
            f"to start again."
        ) from error


def all_finite(state: Mapping[str, torch.Tensor]) -> bool:
    """Return whether all values of a state dict are finite."""
    return all(bool(value.isfinite().all()) for value in state.values())


def _check_progress(step: Any, seconds: Any, rows: Any) -> None:
    if type(step) is not int or step < 0 or not (type(seconds) is float and 0 <= seconds < math.inf):
        raise ValueError(f"it has step {step!r:.100} after {seconds!r:.100} seconds")
    if not all(row.keys() == {*COLUMNS} and {*map(type, row.values())} <= _CELL_TYPES for row in rows):
        raise ValueError("its losses are not numbers")


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    # the options are those of this run; the state is copied, so that nothing stays mapped
    optimizer.load_state_dict({**optimizer.state_dict(), "state": deepcopy(saved["state"])})
    if not all(_fits_adam(parameter, values) for parameter, values in optimizer.state.items()):
        raise ValueError("its optimizer state is that of other weights")


def _fits_adam(parameter: torch.Tensor, values: Mapping[str, torch.Tensor]) -> bool:
    """Return whether these can be Adam's state of a parameter."""
    return values.keys() == {"step", "exp_avg", "exp_avg_sq"} and all(
        value.shape == (() if name == "step" else parameter.shape) for name, value in values.items()
    )
