"""Errors that a user reads: what was wrong, with which value, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = [
    "CheckpointError",
    "DataError",
    "HRMedSegError",
    "PlanError",
    "SetupError",
    "format_names",
    "format_shape",
    "summarize_error",
]


class HRMedSegError(RuntimeError):
    """An error the user can fix. Carries one message only, so that it survives pickling between processes."""


class PlanError(HRMedSegError):
    """Plans, dataset.json or options that cannot be planned, trained or predicted with."""


class DataError(HRMedSegError):
    """Images, labels, masks, prompts or cases that are missing, unreadable, or do not fit together."""


class CheckpointError(HRMedSegError):
    """Checkpoints, encoder files, teachers or exported models that are missing, damaged, unsafe, or of another network."""


class SetupError(HRMedSegError):
    """The machine or the installation: missing packages, devices, environment variables, permissions, disk space."""


def format_names(names: Sequence[str], shown: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(str, names[:shown])) + more


def summarize_error(error: BaseException) -> str:
    """The first line of an error that says anything.

    Torch's advice to load a file with `weights_only=False` is left out: the file could do anything then.
    """
    lines = (line.strip().removeprefix("Weights only load failed. ") for line in str(error).splitlines())
    told = (line for line in lines if line and not re.search(r"weights_only|documentation of torch\.load", line))
    return next(told, type(error).__name__)


def format_shape(shape: Sequence[object]) -> str:
    """1024 x 768."""
    return " x ".join(map(str, shape))
