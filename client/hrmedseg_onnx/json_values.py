"""Types of values in JSON files that people write or edit. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

__all__ = ["is_dict", "is_int", "is_list", "is_number", "is_text"]


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return is_int(value) or (isinstance(value, float) and math.isfinite(value))


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_list(value: Any, holds: Callable[[Any], bool]) -> bool:
    """Return whether this is a list (or a tuple, before it was written to a file) whose entries all satisfy `holds`."""
    return isinstance(value, list | tuple) and all(map(holds, value))


def is_dict(value: Any, holds: Callable[[Any], bool]) -> bool:
    """Return whether this is a dict with entries, whose values all satisfy `holds`."""
    return isinstance(value, dict) and bool(value) and all(map(holds, value.values()))
