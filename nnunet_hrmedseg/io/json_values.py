"""Types of values in JSON files that people write or edit, and the labels of dataset.json."""

from __future__ import annotations

from typing import Any

from hrmedseg_onnx.json_values import is_dict, is_int, is_list, is_number, is_text
from nnunet_hrmedseg.errors import PlanError

__all__ = ["is_dict", "is_int", "is_list", "is_number", "is_text", "label_value", "numeric_labels"]


def label_value(name: str, value: Any) -> Any:
    """Return a value of dataset.json's labels as numbers, from any form that nnU-Net accepts: 1, "1", [1, 2].

    Raises:
        PlanError: the value has none of these forms.
    """
    try:
        return tuple(map(int, value)) if isinstance(value, list | tuple) else int(value)
    except (TypeError, ValueError):
        raise PlanError(
            f"labels in dataset.json gives {name} the value {value!r:.100}; nnU-Net v2 has names with whole numbers, "
            f'or lists of them for regions: {{"background": 0, "tumor": 1}}.'
        ) from None


def numeric_labels(dataset_json: dict[str, Any]) -> dict[str, int | list[int]]:
    """Return the labels of dataset.json with their values as numbers; regions as lists.

    Raises:
        PlanError: nnU-Net does not accept a value.
    """
    values = {name: label_value(name, value) for name, value in dataset_json["labels"].items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
