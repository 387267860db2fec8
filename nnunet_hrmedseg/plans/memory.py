"""Estimate how much memory training takes, which decides batch size and recomputation.

Every network has a `MemoryModel`. Estimates cover forward pass, loss, backward pass and optimizer state; validation
takes less. Plans are the same for every device, and their memory target is that of a GPU: they follow from the estimate
for mixed precision without compilation, which takes more than compiled. In float32 the same batch takes about a quarter
more; trainers compare that with the free memory when they start (`MemoryModel.must_recompute`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from nnunet_hrmedseg.errors import format_shape

__all__ = [
    "AUTOCAST",
    "BYTES_PER_PARAMETER",
    "COMPILED",
    "DEFAULT_MEMORY_TARGET_GB",
    "FLOAT32",
    "GPU_CONTEXT_GB",
    "LinearMemory",
    "MemoryModel",
    "describe_memory_without_recompute",
]

FLOAT32, AUTOCAST, COMPILED = "float32", "autocast", "compiled"
"""Modes of training: without autocast; on CUDA with autocast to float16, as nnU-Net trains; and also compiled."""

MODE_NAMES = {FLOAT32: "float32", AUTOCAST: "mixed precision", COMPILED: "mixed precision, compiled"}

DEFAULT_MEMORY_TARGET_GB = 8.0  # nnU-Net's default for -gpu_memory_target
BYTES_PER_PARAMETER = 4 * 4  # weight, gradient and Adam's two averages in float32
SHARE_OF_FREE = 0.9  # of the memory that is free when training starts; later allocations need the rest
GPU_CONTEXT_GB = 0.5  # what the driver and its libraries take before the first tensor


class MemoryModel(ABC):
    """An estimate of the memory that a training step of a network takes."""

    @abstractmethod
    def training_gb(
        self,
        batch_size: int,
        patch_size: Sequence[int],
        *,
        num_input_channels: int,
        num_classes: int,
        recompute: bool = False,
        mode: str = FLOAT32,
        **arguments: Any,
    ) -> float:
        """Return the peak memory of tensors in a training step, in GB (1e9 bytes), without the GPU's context.

        Args:
            batch_size: number of images or patches.
            patch_size: size of the canvas or patch, in pixels or voxels along each axis.
            num_input_channels: channels of the image.
            num_classes: output channels of the network.
            recompute: whether layers are recomputed in the backward pass.
            mode: FLOAT32, AUTOCAST or COMPILED.
            arguments: other arguments of the network (the `arch_kwargs` of the plans).
        """

    def largest_batch_size(self, memory_target_gb: float, patch_size: Sequence[int], **network: Any) -> int:
        """Return how many images a training step may hold within a memory target; 0 if not even one fits.

        Args:
            memory_target_gb: GB, as nnU-Net's `-gpu_memory_target`, including the GPU's context.
            patch_size: as for `training_gb`.
            network: the keyword arguments of `training_gb`.
        """
        empty = self.training_gb(0, patch_size, **network)
        one = self.training_gb(1, patch_size, **network) - empty
        return max(0, int((memory_target_gb - GPU_CONTEXT_GB - empty) / one))

    def must_recompute(
        self, batch_size: int, patch_size: Sequence[int], free_bytes: int | None, **network: Any
    ) -> bool:
        """Return whether training needs recomputation because it does not fit into the free memory otherwise.

        Args:
            batch_size: as for `training_gb`.
            patch_size: as for `training_gb`.
            free_bytes: free memory of the device; None if it is unknown, which counts as sufficient.
            network: the keyword arguments of `training_gb`, without `recompute`.
        """
        if free_bytes is None:
            return False
        return self.training_gb(batch_size, patch_size, **network) > SHARE_OF_FREE * free_bytes / 1e9

    def describe(
        self,
        batch_size: int,
        patch_size: Sequence[int],
        *,
        recompute: bool,
        planner: str,
        mode: str = FLOAT32,
        **network: Any,
    ) -> str:
        """Return a log line: the estimate, and what the other choice of `recompute` would change.

        Args:
            batch_size: as for `training_gb`.
            patch_size: as for `training_gb`.
            recompute: the current choice.
            planner: the planner whose plans can be edited.
            mode: as for `training_gb`.
            network: the other keyword arguments of `training_gb`.
        """
        now, other = (
            self.training_gb(batch_size, patch_size, recompute=choice, mode=mode, **network)
            for choice in (recompute, not recompute)
        )
        change = (
            f"increases it to {_gb(other)}; each step takes about a quarter less time."
            if recompute
            else f"reduces it to {_gb(other)}; each step takes about a third longer."
        )
        choice = f"arch_kwargs.recompute={str(not recompute).lower()}"
        batch = f"{MODE_NAMES[mode]}, batch size {batch_size}, {format_shape(patch_size)}"
        setting = f"Setting {choice} in the plans that -pl {planner} writes"
        return f"Estimated training memory: {_gb(now)} ({batch}). {setting} {change}"


@dataclass(frozen=True)
class LinearMemory(MemoryModel):
    """Memory in proportion to the number of pixels or voxels, for a network of fixed size.

    Attributes:
        parameters: number of parameters of the network.
        per_pixel: bytes per pixel of the patch, without recomputation, in float32.
        per_pixel_recomputed: the same with recomputation.
        per_class: bytes per pixel and class.
        per_channel: bytes per pixel and input channel.
    """

    parameters: float
    per_pixel: float
    per_pixel_recomputed: float
    per_class: float = 2.0
    per_channel: float = 4.0

    def training_gb(
        self,
        batch_size: int,
        patch_size: Sequence[int],
        *,
        num_input_channels: int,
        num_classes: int,
        recompute: bool = False,
        mode: str = FLOAT32,
        **arguments: Any,
    ) -> float:
        """Return the peak memory of a training step, in GB. The estimate for float32 is used for every mode."""
        per_pixel = self.per_pixel_recomputed if recompute else self.per_pixel
        per_pixel += self.per_class * num_classes + self.per_channel * num_input_channels
        return (batch_size * prod(patch_size) * per_pixel + BYTES_PER_PARAMETER * self.parameters) / 1e9


def describe_memory_without_recompute(kept_gb: float, total_gb: float, dataset: int) -> str | None:
    """Return how to train without recomputation if the GPU has enough memory for it; otherwise None.

    Args:
        kept_gb: estimated training memory without recomputation.
        total_gb: memory of the GPU.
        dataset: number of the dataset.
    """
    target = ceil(kept_gb + GPU_CONTEXT_GB)
    if target > total_gb:
        return None
    return (
        f"The plans recompute layers to save memory, and this GPU has {total_gb:.0f} GB. Without recomputation, each "
        f"step takes about a quarter less time: plan with nnUNetv2_plan_experiment -d {dataset} -pl "
        f"nnUNetPlannerHRMedSeg -gpu_memory_target {target}, and train with -p nnUNetHRMedSegPlans."
    )


def _gb(value: float) -> str:
    return f"{value:.2g} GB" if value < 10 else f"{value:.0f} GB"
