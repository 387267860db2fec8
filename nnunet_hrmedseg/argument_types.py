"""Numbers on the command line, checked as they are read. Imports nothing heavy."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Sequence

__all__ = ["joined_negative_values", "not_negative_int", "positive_int"]


def joined_negative_values(arguments: Sequence[str]) -> list[str]:
    """Join `--box -5,0,20,20` to `--box=-5,0,20,20`: argparse takes lists that begin with a minus for options."""
    joined: list[str] = []
    for argument in arguments:
        if joined and re.fullmatch(r"--\w+", joined[-1]) and re.match(r"-\.?\d[^,]*,", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


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
