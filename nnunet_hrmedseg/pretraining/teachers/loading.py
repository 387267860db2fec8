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
from nnunet_hrmedseg.errors import HRMedSegError, some

__all__ = ["check_canvas", "fingerprint", "load_checkpoint", "one_line", "refuse_unknown_options", "sha256_of"]

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


def _numpy_numbers() -> list:
    """What pickles of NumPy's numbers name, under the names of NumPy 1 and 2."""
    numbers = [np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_]
    scalar = np.float32(0).__reduce__()[0]
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    return [np.dtype, *{type(np.dtype(number)) for number in numbers}, *((scalar, name) for name in names)]


def sha256_of(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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


def one_line(error: BaseException) -> str:
    """The first line of an error that says anything."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
