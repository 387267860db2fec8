"""Errors that users read: what is wrong, with which value, and what to do. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = [
    "CheckpointError",
    "DataError",
    "HRMedSegError",
    "SetupError",
    "format_names",
    "format_shape",
    "summarize_error",
]


class HRMedSegError(RuntimeError):
    """An error the user can fix. It carries a single message, so that it can be pickled between processes."""


class DataError(HRMedSegError):
    """Images, labels, masks, prompts or cases that are missing, unreadable, or do not fit together."""


class CheckpointError(HRMedSegError):
    """Checkpoints, encoder files, teachers or exported models that are missing, damaged, unsafe, or unsuitable."""


class SetupError(HRMedSegError):
    """The machine or the installation: missing packages, devices, environment variables, permissions, disk space."""


def format_names(names: Sequence[object], shown: int = 5) -> str:
    """Return the first `shown` names, separated by commas, and the number of the others."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(str, names[:shown])) + more


def format_shape(shape: Sequence[object]) -> str:
    """Return a shape as in "1024 x 768"."""
    return " x ".join(map(str, shape))


def summarize_error(error: BaseException) -> str:
    """Return the first informative line of an error's message, or the name of its class.

    The advice of PyTorch to load a file with `weights_only=False` is left out, because such a file can execute code.
    """
    lines = (line.strip().removeprefix("Weights only load failed. ") for line in str(error).splitlines())
    kept = (line for line in lines if line and not re.search(r"weights_only|documentation of torch\.load", line))
    return next(kept, type(error).__name__)
