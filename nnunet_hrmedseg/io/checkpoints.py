"""Checkpoints of torch.save, read without executing anything that they hold."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_hrmedseg.errors import HRMedSegError, summarize_error
from nnunet_hrmedseg.io.file_kinds import recognize_file
from nnunet_hrmedseg.io.files import read_json_object
from nnunet_hrmedseg.io.named_classes import check_named_classes

__all__ = ["check_model_folder", "load_checkpoint", "weight_names"]


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
    kind = recognize_file(file, text=True)
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
            f"{file} is damaged or no file of PyTorch ({summarize_error(error)}). Copy or download it again."
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

    trained, plans = load_checkpoint(checkpoint), read_json_object(folder / "plans.json", "nnU-Net plan")
    try:
        configuration = PlansManager(plans).get_configuration(trained["init_args"]["configuration"])
        configuration.network_arch_class_name  # noqa: B018  # is it there?
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise HRMedSegError(
            f"{folder / 'plans.json'} does not describe what {checkpoint} was trained with ({type(error).__name__}: "
            f"{summarize_error(error)}). Copy the folder again."
        ) from error
    check_named_classes(folder, configuration)


def _numpy_numbers() -> list:
    """What pickles of NumPy's numbers name, under the names of NumPy 1 and 2."""
    numbers = [np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_]
    scalar = np.float32(0).__reduce__()[0]
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    return [np.dtype, *{type(np.dtype(number)) for number in numbers}, *((scalar, name) for name in names)]


def weight_names(part: Any) -> list[str]:
    """The names of the weights in a part of a checkpoint; none where it is something else."""
    return [name for name in part if isinstance(name, str)] if isinstance(part, dict) else []
