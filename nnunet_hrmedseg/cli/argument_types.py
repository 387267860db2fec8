"""Numbers on the command line, checked as they are read. Imports nothing heavy."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Sequence
from math import isfinite

__all__ = [
    "fold",
    "joined_negative_values",
    "not_negative_float",
    "not_negative_int",
    "positive_float",
    "positive_int",
    "probability",
]


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


def positive_float(text: str) -> float:
    value = float(text)
    if not (isfinite(value) and value > 0):
        raise ArgumentTypeError(f"{value:g} is not a positive number")
    return value


def not_negative_float(text: str) -> float:
    value = float(text)
    if not (isfinite(value) and value >= 0):
        raise ArgumentTypeError(f"{value:g} is not a number from 0 on")
    return value


def probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"{value:g} is not between 0 and 1")
    return value


def fold(text: str) -> str:
    """Return nnU-Net's name of a fold: "0", "1", ... or "all"."""
    if text != "all" and not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is not a fold: 0, 1, ... or all")
    return text if text == "all" else str(int(text))
