"""The error that a user reads: what was wrong, with which value, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["HRMedSegError", "one_line", "size", "some"]


class HRMedSegError(RuntimeError):
    """Something that the user can mend. Carries one message only, so that it survives pickling between processes."""


def some(names: Sequence[str], shown: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(str, names[:shown])) + more


def one_line(error: BaseException) -> str:
    """The first line of an error that says anything.

    Torch's advice to load a file with `weights_only=False` is left out: the file could do anything then.
    """
    lines = (line.strip().removeprefix("Weights only load failed. ") for line in str(error).splitlines())
    told = (line for line in lines if line and not re.search(r"weights_only|documentation of torch\.load", line))
    return next(told, type(error).__name__)


def size(shape: Sequence[object]) -> str:
    """1024 x 768."""
    return " x ".join(map(str, shape))
