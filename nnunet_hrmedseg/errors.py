"""The error that a user reads: what was wrong, with which value, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["HRMedSegError", "size", "some"]


class HRMedSegError(RuntimeError):
    """Something that the user can mend. Carries one message only, so that it survives pickling between processes."""


def some(names: Sequence[str], shown: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(str, names[:shown])) + more


def size(shape: Sequence[object]) -> str:
    """1024 x 768."""
    return " x ".join(map(str, shape))
