"""The memory model of HRMedSeg and HER-Seg: a linear function fitted to counted allocations.

HRMedSeg keeps everything but the image at 1/16 or 1/4 resolution, so memory grows with the number of pixels, and per
pixel with the width and depth of the encoder. Each mode of training has its own coefficients. Those for float32 (CPU)
were fitted to the peak of live tensors (benchmarks/training_memory.py; the result file lists the cases), the others to
the peak of torch's CUDA allocator (benchmarks/cuda_memory.py), which counts the same without a GPU behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from nnunet_hrmedseg.plans.memory import AUTOCAST, BYTES_PER_PARAMETER, COMPILED, FLOAT32, MemoryModel

__all__ = ["HRMedSegMemory"]


@dataclass(frozen=True)
class Coefficients:
    """Bytes per pixel of the canvas: a constant, and the bytes per pixel and unit of each quantity."""

    constant: float
    width: float
    width_and_layer: float
    classes: float
    channels: float


COEFFICIENTS = {
    (FLOAT32, False): Coefficients(constant=124.0, width=0.60, width_and_layer=0.31, classes=2.0, channels=4.8),
    (FLOAT32, True): Coefficients(constant=15.5, width=0.58, width_and_layer=0.015, classes=0.3, channels=5.5),
    (AUTOCAST, False): Coefficients(constant=96.0, width=0.425, width_and_layer=0.251, classes=1.0, channels=4.0),
    (AUTOCAST, True): Coefficients(constant=42.0, width=0.11, width_and_layer=0.02, classes=0.3, channels=4.0),
    (COMPILED, False): Coefficients(constant=50.5, width=0.29, width_and_layer=0.172, classes=1.45, channels=4.0),
    (COMPILED, True): Coefficients(constant=27.5, width=0.11, width_and_layer=0.02, classes=0.05, channels=4.0),
}
"""Coefficients by (mode, recompute)."""

PARAMETERS_WITHOUT_ENCODER = 2.3e6
PARAMETERS_PER_LAYER_AND_SQUARED_WIDTH = 8.73
CUDA_WORKSPACE_GB = 0.06  # of convolutions and matrix products, and a half-precision copy of the weights


class HRMedSegMemory(MemoryModel):
    """Memory of HRMedSeg and HER-Seg, from the canvas, the encoder's width and depth, classes and channels."""

    def training_gb(
        self,
        batch_size: int,
        patch_size: Sequence[int],
        *,
        num_input_channels: int,
        num_classes: int,
        recompute: bool = False,
        mode: str = FLOAT32,
        embed_dim: int = 96,
        depth: int | Sequence[int] = 10,
        **arguments: Any,
    ) -> float:
        """Return the peak memory of a training step, in GB; see `MemoryModel.training_gb`."""
        depth = depth if isinstance(depth, int) else sum(depth)
        bytes_per = COEFFICIENTS[mode, recompute]
        per_pixel = (
            bytes_per.constant
            + bytes_per.width * embed_dim
            + bytes_per.width_and_layer * embed_dim * depth
            + bytes_per.classes * num_classes
            + bytes_per.channels * num_input_channels
        )
        parameters = PARAMETERS_WITHOUT_ENCODER + PARAMETERS_PER_LAYER_AND_SQUARED_WIDTH * embed_dim**2 * depth
        workspace = 0.0 if mode == FLOAT32 else CUDA_WORKSPACE_GB
        return (batch_size * prod(patch_size) * per_pixel + BYTES_PER_PARAMETER * parameters) / 1e9 + workspace
