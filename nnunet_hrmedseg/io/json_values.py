"""Types of values in JSON files that people write or edit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from nnunet_hrmedseg.errors import HRMedSegError

__all__ = ["is_dict", "is_int", "is_list", "is_number", "is_text", "label_value", "numeric_labels"]


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


def label_value(name: str, value: Any) -> Any:
    """Return a value of dataset.json's labels as numbers, in whatever form nnU-Net takes it: 1, "1", [1, 2].

    Raises:
        HRMedSegError: it is neither.
    """
    try:
        return tuple(map(int, value)) if isinstance(value, list | tuple) else int(value)
    except (TypeError, ValueError):
        raise HRMedSegError(
            f"labels in dataset.json gives {name} the value {value!r:.100}; nnU-Net v2 has names with whole numbers, "
            f'or lists of them for regions: {{"background": 0, "tumor": 1}}.'
        ) from None


def numeric_labels(dataset_json: dict[str, Any]) -> dict[str, int | list[int]]:
    """Return the labels of dataset.json with their values as numbers; regions as lists.

    Raises:
        HRMedSegError: a value of a form that nnU-Net does not take.
    """
    values = {name: label_value(name, value) for name, value in dataset_json["labels"].items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
