"""Checkpoints: which file of a trained model is used, and loading it without executing its content."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_hrmedseg.errors import CheckpointError, SetupError, format_names, summarize_error
from nnunet_hrmedseg.io.file_kinds import recognize_file
from nnunet_hrmedseg.io.files import read_json_object
from nnunet_hrmedseg.io.named_classes import check_named_classes

__all__ = ["BEST", "FINAL", "check_model_folder", "find_checkpoint", "is_fold", "load_checkpoint", "weight_names"]

FINAL, BEST = "checkpoint_final.pth", "checkpoint_best.pth"
"""File names of nnU-Net: after the last epoch, and of the epoch with the best pseudo Dice."""


def is_fold(name: str) -> bool:
    """Return whether nnU-Net has folds of this name; the copy fold_0_old of a folder is not one."""
    return name == "all" or name.isdecimal()


def find_checkpoint(folder: Path, fold: int | str | None = None, checkpoint: str | None = None) -> Path:
    """Return the checkpoint of a fold: checkpoint_final.pth if it exists, otherwise checkpoint_best.pth.

    Args:
        folder: folder of a trained model, with fold_0, fold_1, ...
        fold: number or "all"; None: the first fold with a checkpoint, in the order 0, 1, ..., all.
        checkpoint: another file name.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    existing = [entry.name.removeprefix("fold_") for entry in folder.glob("fold_*") if entry.is_dir()]
    existing = [name for name in existing if is_fold(name)]
    existing.sort(key=lambda name: (name == "all", name.zfill(9)))
    names = (FINAL, BEST) if checkpoint is None else (checkpoint,)
    for each in existing if fold is None else [str(fold)]:
        for name in names:
            file = folder / f"fold_{each}" / name
            if file.is_file():
                return file
    requested = "fold" if fold is None else f"fold {fold}"
    raise CheckpointError(
        f"{folder}: no {requested} has {' or '.join(names)}. The folds there: {format_names(existing) or 'none'}."
    )


def load_checkpoint(file: Path) -> dict[str, Any]:
    """Load a file of torch.save on the CPU without executing its content.

    Only tensors, plain Python types and NumPy numbers (which nnU-Net's checkpoints contain) are loaded. Tensors may be
    memory-mapped from the file: copy those that are kept.

    Raises:
        CheckpointError: the file cannot be read, is damaged, does not hold a dict, or holds objects that would have to
            be executed.
        SetupError: torch is too old to load files safely.
    """
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        raise SetupError(f"Loading {file} safely takes torch 2.6 or newer; this is torch {torch.__version__}.")
    kind = recognize_file(file, text=True)
    if kind is not None:
        raise CheckpointError(f"{file} is {kind}.")
    try:
        with torch.serialization.safe_globals(_numpy_numbers()):
            checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    except Exception as error:  # the class depends on where the file is damaged
        unsafe = sorted(set(re.findall(r"GLOBAL (\S+)", str(error))))
        if unsafe:
            raise CheckpointError(
                f"{file} was not loaded: it holds {', '.join(unsafe)}, which would have to be executed, and such a "
                f"file can execute any code. Only tensors and plain values are loaded. If you trust the file, load it "
                f"yourself and save only its weights."
            ) from None
        raise CheckpointError(
            f"{file} is damaged or not a file of PyTorch ({summarize_error(error)}). Copy or download it again."
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{file} holds a {type(checkpoint).__name__} and not the named weights of a network.")
    return checkpoint


def check_model_folder(folder: Path, checkpoint: Path) -> None:
    """Check a trained model's folder before nnU-Net opens it.

    nnU-Net's predictor executes the content of checkpoints, and calls whatever class or function the plan names.

    Args:
        folder: folder of the trained model, with plans.json.
        checkpoint: a checkpoint in this folder.

    Raises:
        CheckpointError: files are missing or damaged, the checkpoint holds more than plain values, or the plan names
            something that is not a network.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    trained, plans = (
        load_checkpoint(checkpoint),
        read_json_object(folder / "plans.json", "nnU-Net plan", CheckpointError),
    )
    try:
        configuration = PlansManager(plans).get_configuration(trained["init_args"]["configuration"])
        configuration.network_arch_class_name  # noqa: B018  # raises if it is missing
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'plans.json'} does not describe what {checkpoint} was trained with ({type(error).__name__}: "
            f"{summarize_error(error)}). Copy the folder again."
        ) from error
    check_named_classes(folder, configuration)


def _numpy_numbers() -> list:
    """Return the globals in pickles of NumPy numbers, with the names of NumPy 1 and 2."""
    numbers = [np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_]
    scalar = np.float32(0).__reduce__()[0]
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    return [np.dtype, *{type(np.dtype(number)) for number in numbers}, *((scalar, name) for name in names)]


def weight_names(part: Any) -> list[str]:
    """Return the names of the weights in a part of a checkpoint; empty if it is not a dict."""
    return [name for name in part if isinstance(name, str)] if isinstance(part, dict) else []
