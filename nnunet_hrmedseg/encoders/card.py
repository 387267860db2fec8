"""The end of every run: the encoder file, and what its card says about images and machine."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_hrmedseg import __version__
from nnunet_hrmedseg.io import shell
from nnunet_hrmedseg.io.files import reporting_write_errors
from nnunet_hrmedseg.io.machine import processor_name
from nnunet_hrmedseg.io.processes import Processes
from nnunet_hrmedseg.weights.encoder_file import EncoderFile, write_encoder

__all__ = ["environment", "image_statistics", "training_command", "write_result"]


def write_result(folder: Path, state: Mapping[str, Tensor], card: Mapping[str, Any]) -> EncoderFile:
    """Write the encoder file of a finished run, and print how to train from it."""
    target = folder / "encoder.safetensors"
    with reporting_write_errors(target, "and repeat the command: the finished training is kept."):
        file = write_encoder(target, state, card)
    print(f"Encoder: {file.path} (sha256 {file.sha256}), card beside it, losses in losses.csv and losses.png.")
    print(f"Train from it:  {training_command(file.path.absolute())}", flush=True)
    return file


def training_command(encoder: Path) -> str:
    """Return the command of a training that starts from this file, for PowerShell or a POSIX shell."""
    if shell.ON_WINDOWS:
        return f'$env:HRMEDSEG_ENCODER_WEIGHTS = "{encoder}"; nnUNetv2_train ...'
    return f"HRMEDSEG_ENCODER_WEIGHTS={shell.quote(str(encoder))} nnUNetv2_train ..."


def image_statistics(images: Sequence[Tensor]) -> dict[str, list[float]]:
    """Return `mean` and `std` of the channels of images (3, H, W) in 0..1, averaged over the images."""
    return {
        "mean": torch.stack([image.mean((1, 2)) for image in images]).mean(0).tolist(),
        "std": torch.stack([image.std((1, 2)) for image in images]).mean(0).tolist(),
    }


def environment(group: Processes) -> dict[str, Any]:
    """Return hardware, versions and date, for the card."""
    if group.device.type == "cuda":
        hardware = f"{group.count} x {torch.cuda.get_device_name(group.device)}"
    else:
        hardware = f"{processor_name()}, {group.count} process(es) with {torch.get_num_threads()} thread(s)"
    return {
        "hardware": hardware,
        "versions": {
            "nnunet_hrmedseg": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "date": datetime.date.today().isoformat(),
    }
