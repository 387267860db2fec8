"""How much memory training SegMaFormer takes, and so whether its blocks are kept or evaluated again.

nnU-Net chooses patch and batch for its own U-Net; this estimate changes neither. Memory grows with the tokens of the
first two stages and with the logits, which exist at full resolution for each class. The coefficients were fitted to the
peak of live tensors in forward pass, loss and backward pass in float32, weights and optimiser included
(benchmarks/segmaformer_memory.py), at the paper's widths. In mixed precision it is less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from nnunet_hrmedseg.errors import format_shape
from nnunet_hrmedseg.plans.memory import BYTES_PER_PARAMETER, GPU_CONTEXT_GB, format_recompute_tradeoff

__all__ = ["GPU_CONTEXT_GB", "describe_training_memory", "tokens_of_stages", "training_memory_gb"]


@dataclass(frozen=True)
class Coefficients:
    """Bytes per token of the first and of the second stage, and per voxel and class."""

    first_stage: float
    second_stage: float
    classes: float


KEEPING = Coefficients(first_stage=11.2e3, second_stage=32e3, classes=18.0)
RECOMPUTING = Coefficients(first_stage=3.7e3, second_stage=13.6e3, classes=12.0)

CHANNELS = 4.0  # bytes per voxel and input channel: the image itself
PARAMETERS = 2.02e6


def tokens_of_stages(patch_size: Sequence[int], strides: Sequence[Sequence[int]]) -> list[float]:
    """Tokens of each stage; not whole where the strides do not divide the patch."""
    tokens, counts = float(prod(patch_size)), []
    for stride in strides:
        tokens /= prod(stride)
        counts.append(tokens)
    return counts


def training_memory_gb(
    batch_size: int,
    patch_size: Sequence[int],
    *,
    num_input_channels: int,
    num_classes: int,
    strides: Sequence[Sequence[int]],
    recompute: bool = False,
) -> float:
    """Peak memory of tensors in a training step, in GB (1e9 bytes), without the GPU's context.

    Args:
        batch_size: patches.
        patch_size: voxels along z, y, x.
        num_input_channels, num_classes, strides: of the network.
        recompute: whether blocks are evaluated again in the backward pass.
    """
    bytes_per = RECOMPUTING if recompute else KEEPING
    first, second, *_ = tokens_of_stages(patch_size, strides)
    per_voxel = bytes_per.classes * num_classes + CHANNELS * num_input_channels
    patch = bytes_per.first_stage * first + bytes_per.second_stage * second + per_voxel * prod(patch_size)
    return (batch_size * patch + BYTES_PER_PARAMETER * PARAMETERS) / 1e9


def describe_training_memory(batch_size: int, patch_size: Sequence[int], *, recompute: bool, **network) -> str:
    """What training takes with `recompute` as it is, and what the other choice would cost; for the log.

    network: the other keyword arguments of `training_memory_gb`.
    """
    gb = {choice: training_memory_gb(batch_size, patch_size, recompute=choice, **network) for choice in (True, False)}
    return format_recompute_tradeoff(f"{batch_size} patches of {format_shape(patch_size)}", gb, recompute)
