"""What all teachers need to read a file: loading that executes nothing, check sums, refusing what does not fit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch

from nnunet_hrmedseg.architectures.lgvit import PATCH_SIZE
from nnunet_hrmedseg.errors import HRMedSegError, format_names

__all__ = ["check_canvas", "fingerprint", "numbers_of_config", "refuse_unknown_options"]

GRID = PATCH_SIZE  # pixels of an image per pixel of the student's embedding


def numbers_of_config(config: Any) -> Any:
    """What a config.json of transformers says in numbers. Of its texts, only the kinds of parts and of activations are
    kept: others can name code that transformers would fetch and run, such as another implementation of attention."""
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
    """A short name of these values, whatever file they lie in."""
    return hashlib.sha256(weight.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()[:16]


def check_canvas(canvas: tuple[int, int]) -> tuple[int, int]:
    """The canvas as (height, width).

    Raises:
        HRMedSegError: it is not two positive multiples of 16.
    """
    if len(canvas) != 2 or any(size < GRID or size % GRID for size in canvas):
        raise HRMedSegError(f"The canvas must be height and width in multiples of {GRID} pixels, not {tuple(canvas)}.")
    return int(canvas[0]), int(canvas[1])


def refuse_unknown_options(kind: str, options: Iterable[str], known: Iterable[str] = ()) -> None:
    """Raises HRMedSegError if there is any option that this kind of teacher does not know."""
    unknown = sorted(options)
    if unknown:
        has = ", ".join(known) or "none"
        raise HRMedSegError(f"A teacher of kind {kind} does not know {format_names(unknown)}. Its options: {has}.")
