"""What SegMaFormer needs in a plan: its shape, which follows from spacing and patch size, and its memory model.

nnU-Net chooses patch and batch size for its own U-Net; SegMaFormer takes them as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from nnunet_hrmedseg.plans.memory import BYTES_PER_PARAMETER, FLOAT32, MemoryModel

__all__ = ["SegMaFormerMemory", "segmaformer_shape", "tokens_of_stages"]

MIN_FEATURE_MAP = 4  # nnU-Net's: no axis is reduced to fewer tokens
HALVINGS_OF_STAGES = (2, 1, 1, 1)  # the paper's strides 4, 2, 2, 2


def segmaformer_shape(patch_size: Sequence[int], spacing: Sequence[float]) -> dict[str, list[list[int]]]:
    """Return strides and kernel sizes of the four stages and reductions of the first three, for each axis.

    They follow the first five poolings that nnU-Net plans for such patches: stage 1 takes two of them, the others one
    each. Where nnU-Net does not pool, because an axis is short or its voxels are thick, the stride is 1. A kernel is
    2 stride - 1 (the paper's 7, 3, 3, 3), and at least as large as nnU-Net's own at that resolution: 3, or 1 along an
    axis whose voxels are more than twice as thick. The Mamba layers of stage 1 work at the resolution of stage 3 (the
    paper's reduction of 4).

    Args:
        patch_size: voxels along z, y, x.
        spacing: size of a voxel along z, y, x, in mm.
    """
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    _, poolings, kernels, *_ = get_pool_and_conv_props(spacing, patch_size, MIN_FEATURE_MAP, 999)
    poolings = [*poolings[1:], *[(1, 1, 1)] * 5]
    kernels = [*kernels, *[(3, 3, 3)] * 5]
    strides, kernel_sizes = [], []
    level = 0
    for halvings in HALVINGS_OF_STAGES:
        stride = [1, 1, 1]
        for pooling in poolings[level : level + halvings]:
            stride = [so_far * factor for so_far, factor in zip(stride, pooling, strict=True)]
        strides.append(stride)
        kernel_sizes.append([max(2 * s - 1, k) for s, k in zip(stride, kernels[level], strict=True)])
        level += halvings
    reduction = [second * third for second, third in zip(strides[1], strides[2], strict=True)]
    return {"strides": strides, "kernel_sizes": kernel_sizes, "reductions": [reduction, [1, 1, 1], [1, 1, 1]]}


@dataclass(frozen=True)
class Coefficients:
    """Bytes per token of the first and of the second stage, and per voxel and class."""

    first_stage: float
    second_stage: float
    classes: float


COEFFICIENTS = {
    False: Coefficients(first_stage=11.2e3, second_stage=32e3, classes=18.0),
    True: Coefficients(first_stage=3.7e3, second_stage=13.6e3, classes=12.0),
}
"""Coefficients by `recompute`."""

CHANNELS = 4.0  # bytes per voxel and input channel: the image itself
PARAMETERS = 2.02e6


class SegMaFormerMemory(MemoryModel):
    """Memory of SegMaFormer, from the tokens of its first two stages and the logits at full resolution.

    The coefficients were fitted to the peak of live tensors in float32 at the paper's widths
    (benchmarks/segmaformer_memory.py). The estimate for float32 is used for every mode; mixed precision takes less.
    """

    def training_gb(
        self,
        batch_size: int,
        patch_size: Sequence[int],
        *,
        num_input_channels: int,
        num_classes: int,
        recompute: bool = False,
        mode: str = FLOAT32,
        strides: Sequence[Sequence[int]] = ((4, 4, 4), (2, 2, 2)),
        **arguments: Any,
    ) -> float:
        """Return the peak memory of a training step, in GB; see `MemoryModel.training_gb`."""
        bytes_per = COEFFICIENTS[recompute]
        first, second, *_ = tokens_of_stages(patch_size, strides)
        per_voxel = bytes_per.classes * num_classes + CHANNELS * num_input_channels
        patch = bytes_per.first_stage * first + bytes_per.second_stage * second + per_voxel * prod(patch_size)
        return (batch_size * patch + BYTES_PER_PARAMETER * PARAMETERS) / 1e9


def tokens_of_stages(patch_size: Sequence[int], strides: Sequence[Sequence[int]]) -> list[float]:
    """Return the number of tokens of each stage; it is fractional if the strides do not divide the patch."""
    tokens, counts = float(prod(patch_size)), []
    for stride in strides:
        tokens /= prod(stride)
        counts.append(tokens)
    return counts
