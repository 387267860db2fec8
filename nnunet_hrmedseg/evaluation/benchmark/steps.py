"""One training step or prediction of a network, as nnU-Net runs it, on random images."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_hrmedseg.evaluation.benchmark.networks import CONTENDERS, Trainable
from nnunet_hrmedseg.io.cpu_precision import predicts_in_bfloat16

__all__ = ["Case", "autocast", "describe_precision", "random_batch", "run_once", "synchronize"]

MAX_GRADIENT_NORM = 12  # nnU-Net's


@dataclass(frozen=True)
class Case:
    """One measurement: a network at a size, with a number of classes and a batch size, in training or prediction."""

    network: str
    size: int
    classes: int
    batch_size: int
    training: bool

    def image_shape(self, channels: int) -> tuple[int, ...]:
        """Return (B, C, H, W), or (B, C, Z, Y, X) for three dimensions."""
        return self.batch_size, channels, *[self.size] * CONTENDERS[self.network].dimensions


def random_batch(image_shape: Sequence[int], classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return images of this shape (B, C, H, W) or (B, C, Z, Y, X), and labels for them."""
    images, _, *size = image_shape
    image = torch.randn(*image_shape, device=device)
    return image, torch.randint(0, classes, (images, 1, *size), dtype=torch.int16, device=device)


def run_once(trained: Trainable, image: Tensor, target: Tensor, training: bool, precision: str) -> None:
    """Run one training step (forward, loss, backward, optimizer) or one prediction."""
    trained.mode(training=training)
    with torch.set_grad_enabled(training), autocast(image.device, precision):
        if not training:
            trained.network(image)
            return
        loss = trained.loss(trained.network(image), target)
    trained.optimizer.zero_grad(set_to_none=True)
    if precision != "nnunet" or image.device.type != "cuda":
        loss.backward()
        trained.optimizer.step()
        return
    scaler = torch.amp.GradScaler("cuda")
    scaler.scale(loss).backward()
    scaler.unscale_(trained.optimizer)
    nn.utils.clip_grad_norm_(trained.network.parameters(), MAX_GRADIENT_NORM)
    scaler.step(trained.optimizer)
    scaler.update()


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the context in which forward pass and loss run."""
    if precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    if precision == "nnunet" and device.type == "cuda":
        return torch.autocast("cuda", torch.float16)
    return nullcontext()


def describe_precision(precision: str, device: torch.device) -> str:
    """Return the number formats that are measured: those of "nnunet" depend on the machine."""
    if precision != "nnunet":
        return precision
    if device.type == "cuda":
        return "mixed precision (fp16), not compiled"
    in_bfloat16 = device.type == "cpu" and predicts_in_bfloat16()
    return "float32" + (", predictions of HRMedSeg and HER-Seg in bfloat16" if in_bfloat16 else "")


def synchronize(device: torch.device) -> None:
    """Wait for the work of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
