"""What several teachers need: the package transformers, configurations without code, checks of options."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import torch

from nnunet_hrmedseg.architectures.lgvit import PATCH_SIZE
from nnunet_hrmedseg.errors import PlanError, SetupError, format_names
from nnunet_hrmedseg.io.extras import import_extra

__all__ = ["check_canvas", "fingerprint", "import_transformers", "numbers_of_config", "refuse_unknown_options"]

GRID = PATCH_SIZE  # pixels of an image per pixel of the student's embedding


def import_transformers(purpose: str) -> ModuleType:
    """Import the package transformers.

    Args:
        purpose: What needs it, for the message.

    Raises:
        SetupError: The package is missing, or older than 4.56, which is the first with SAM2.
    """
    transformers = import_extra("transformers", "sam", purpose)
    if not hasattr(transformers, "Sam2Model"):
        raise SetupError(
            f"transformers {transformers.__version__} is too old for {purpose}, which needs 4.56 or newer: pip install "
            f"-U 'nnunet_hrmedseg[sam]'"
        )
    return transformers


def numbers_of_config(config: Any) -> Any:
    """Return the numbers in a config.json of transformers.

    Of its texts, only the types of models and activations are kept: others can name code that transformers would
    download and run, such as another implementation of attention.
    """
    if isinstance(config, dict):
        kept = {}
        for name, value in config.items():
            if not isinstance(value, str) or name in ("model_type", "hidden_act"):
                kept[name] = value if isinstance(value, str) else numbers_of_config(value)
        return kept
    if isinstance(config, list):
        return [numbers_of_config(value) for value in config if not isinstance(value, str)]
    return config


def fingerprint(weight: torch.Tensor) -> str:
    """Return a short hash of the values of a weight, independent of its file."""
    return hashlib.sha256(weight.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()[:16]


def check_canvas(canvas: tuple[int, int]) -> tuple[int, int]:
    """Return the canvas as (height, width).

    Raises:
        PlanError: It is not two positive multiples of 16.
    """
    if len(canvas) != 2 or any(size < GRID or size % GRID for size in canvas):
        raise PlanError(f"The canvas must be height and width in multiples of {GRID} pixels, not {tuple(canvas)}.")
    return int(canvas[0]), int(canvas[1])


def refuse_unknown_options(kind: str, options: Iterable[str], known: Iterable[str] = ()) -> None:
    """Raise PlanError if there is an option that this kind of teacher does not have."""
    unknown = sorted(options)
    if unknown:
        has = ", ".join(known) or "none"
        raise PlanError(f"A teacher of kind {kind} does not know {format_names(unknown)}. Its options: {has}.")
