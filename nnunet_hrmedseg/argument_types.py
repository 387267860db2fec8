"""Numbers on the command line, checked as they are read. Imports nothing heavy."""

from __future__ import annotations

from argparse import ArgumentTypeError

__all__ = ["not_negative_int", "positive_int"]


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ArgumentTypeError(f"{value} is not positive")
    return value


def not_negative_int(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ArgumentTypeError(f"{value} is negative")
    return value
