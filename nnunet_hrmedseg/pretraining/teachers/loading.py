"""What all teachers need to read a file: loading that executes nothing, check sums, refusing what does not fit."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_hrmedseg.architectures.lgvit import PATCH_SIZE
from nnunet_hrmedseg.errors import HRMedSegError, one_line, some
from nnunet_hrmedseg.file_kinds import recognized
from nnunet_hrmedseg.files import json_object

__all__ = [
    "check_canvas",
    "check_model_folder",
    "fingerprint",
    "load_checkpoint",
    "names_in",
    "numbers_of_config",
    "refuse_unknown_options",
]

GRID = PATCH_SIZE  # pixels of an image per pixel of the student's embedding


def load_checkpoint(file: Path) -> dict[str, Any]:
    """Reads a file of torch.save on the CPU without executing anything that it contains.

    Tensors, Python's plain types and NumPy's numbers (nnU-Net's checkpoints hold some) are all that is loaded. Tensors
    may be mapped from the file rather than read: copy those that are kept.

    Raises:
        HRMedSegError: it cannot be read, is damaged, holds no dict, or holds anything else that would have to be
            executed to be loaded (named).
    """
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        raise HRMedSegError(f"Loading {file} safely takes torch 2.6 or newer; this is torch {torch.__version__}.")
    kind = recognized(file, text=True)
    if kind is not None:
        raise HRMedSegError(f"{file} is {kind}.")
    try:
        with torch.serialization.safe_globals(_numpy_numbers()):
            checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise HRMedSegError(f"{file} cannot be read: {error}") from error
    except Exception as error:  # what torch raises for a damaged file depends on where the damage is
        unsafe = sorted(set(re.findall(r"GLOBAL (\S+)", str(error))))
        if unsafe:
            raise HRMedSegError(
                f"{file} was not loaded: it holds {', '.join(unsafe)}, which would have to be executed, and a file may "
                f"do anything then. Only tensors and plain values are loaded. If you trust the file, load it yourself "
                f"and save again nothing but its weights."
            ) from None
        raise HRMedSegError(
            f"{file} is damaged or no file of PyTorch ({one_line(error)}). Copy or download it again."
        ) from error
    if not isinstance(checkpoint, dict):
        raise HRMedSegError(f"{file} holds a {type(checkpoint).__name__} and not the named weights of a network.")
    return checkpoint


def check_model_folder(folder: Path, checkpoint: Path) -> None:
    """To be asked before nnU-Net opens a trained model's folder: `nnUNetPredictor` loads a checkpoint with all that it
    would execute, and calls what the plan names.

    Args:
        folder: with plans.json.
        checkpoint: a file in it.

    Raises:
        HRMedSegError: files missing or damaged; the checkpoint holds more than values; the plan names something that
            is no network.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_hrmedseg.plans.named_classes import check_named_classes

    trained, plans = load_checkpoint(checkpoint), json_object(folder / "plans.json", "nnU-Net plan")
    try:
        configuration = PlansManager(plans).get_configuration(trained["init_args"]["configuration"])
        configuration.network_arch_class_name  # noqa: B018  # is it there?
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise HRMedSegError(
            f"{folder / 'plans.json'} does not describe what {checkpoint} was trained with ({type(error).__name__}: "
            f"{one_line(error)}). Copy the folder again."
        ) from error
    check_named_classes(folder, configuration)


def _numpy_numbers() -> list:
    """What pickles of NumPy's numbers name, under the names of NumPy 1 and 2."""
    numbers = [np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_]
    scalar = np.float32(0).__reduce__()[0]
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    return [np.dtype, *{type(np.dtype(number)) for number in numbers}, *((scalar, name) for name in names)]


def names_in(part: Any) -> list[str]:
    """The names of the weights in a part of a checkpoint; none where it is something else."""
    return [name for name in part if isinstance(name, str)] if isinstance(part, dict) else []


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
        raise HRMedSegError(f"A teacher of kind {kind} does not know {some(unknown)}. Its options: {has}.")
