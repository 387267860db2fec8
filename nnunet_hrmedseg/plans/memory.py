"""How much memory training takes, and so how many images fit into a batch.

A straight line through counted allocations: HRMedSeg keeps everything but the image at 1/16 or 1/4 resolution, so
memory grows with the number of pixels, and per pixel with the width and depth of the encoder. There is a line for each
way of training: in float32 (CPU), and in mixed precision on a GPU, as written or compiled. The first was fitted to the
peak of live tensors in forward pass, loss, backward pass and optimizer state (benchmarks/training_memory.py; the result
file says on what), the others to the peak of torch's CUDA allocator, which counts the same without a GPU behind it. All
of them cover the validation step, which takes less.

Plans are the same for every device, and their memory target is that of a GPU: they follow from the line of mixed
precision as written, which takes more than compiled. In float32 the same batch takes about a quarter more; trainers
compare that with the memory that is free when they start (`must_recompute`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod

from nnunet_hrmedseg.errors import format_shape

__all__ = [
    "AUTOCAST",
    "COMPILED",
    "FLOAT32",
    "describe_memory_without_recompute",
    "describe_training_memory",
    "format_recompute_tradeoff",
    "largest_batch_size",
    "must_recompute",
    "training_memory_gb",
]


@dataclass(frozen=True)
class Coefficients:
    """Bytes per pixel of the canvas: a constant, and per unit of each of these."""

    constant: float
    width: float
    width_and_layer: float
    classes: float
    channels: float


FLOAT32, AUTOCAST, COMPILED = "float32", "autocast", "compiled"
"""Ways of training: without autocast; on CUDA with autocast to float16, as nnU-Net trains; and compiled besides."""

RECOMPUTED_ON_CUDA = Coefficients(constant=42.0, width=0.11, width_and_layer=0.02, classes=0.3, channels=4.0)

COEFFICIENTS = {
    (FLOAT32, False): Coefficients(constant=124.0, width=0.60, width_and_layer=0.31, classes=2.0, channels=4.8),
    (FLOAT32, True): Coefficients(constant=15.5, width=0.58, width_and_layer=0.015, classes=0.3, channels=5.5),
    (AUTOCAST, False): Coefficients(constant=96.0, width=0.425, width_and_layer=0.251, classes=1.0, channels=4.0),
    (AUTOCAST, True): RECOMPUTED_ON_CUDA,
    (COMPILED, False): Coefficients(constant=66.0, width=0.29, width_and_layer=0.172, classes=0.6, channels=4.0),
    (COMPILED, True): RECOMPUTED_ON_CUDA,  # the compiler saves launches there, not memory
}
"""Of each way of training, without and with recomputation in the backward pass."""

IN_WORDS = {FLOAT32: "float32", AUTOCAST: "mixed precision", COMPILED: "mixed precision, compiled"}

PARAMETERS_WITHOUT_ENCODER = 2.3e6
PARAMETERS_PER_LAYER_AND_SQUARED_WIDTH = 8.73
BYTES_PER_PARAMETER = 4 * 4  # weight, gradient and Adam's two averages in float32

CUDA_WORKSPACE_GB = 0.06  # of convolutions and matrix products, and a half-precision copy of the weights
SHARE_OF_FREE = 0.9  # of the memory that is free when training starts: the rest is for all that comes later
GPU_CONTEXT_GB = 0.5  # what the driver and its libraries take before the first tensor


def training_memory_gb(
    batch_size: int,
    canvas: Sequence[int],
    *,
    num_input_channels: int,
    num_classes: int,
    embed_dim: int = 96,
    depth: int | Sequence[int] = 10,
    recompute: bool = False,
    mode: str = FLOAT32,
) -> float:
    """Peak memory of tensors in a training step, in GB (1e9 bytes), without the GPU's context.

    Args:
        batch_size: images.
        canvas: (height, width) in pixels.
        num_input_channels, num_classes: of the network.
        embed_dim, depth: width C and number of token-interactive layers L of the encoder (or its groups' sizes).
        recompute: whether layers are evaluated again in the backward pass.
        mode: FLOAT32, AUTOCAST or COMPILED.
    """
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
    return (batch_size * prod(canvas) * per_pixel + BYTES_PER_PARAMETER * parameters) / 1e9 + workspace


def largest_batch_size(memory_target_gb: float, canvas: Sequence[int], **network) -> int:
    """How many images a training step may hold within `memory_target_gb`, the GPU's context included; may be 0.

    Args:
        memory_target_gb: GB, as nnU-Net's `-gpu_memory_target`.
        canvas: (height, width) in pixels.
        network: the keyword arguments of `training_memory_gb`.
    """
    nothing = training_memory_gb(0, canvas, **network)
    one = training_memory_gb(1, canvas, **network) - nothing
    return max(0, int((memory_target_gb - GPU_CONTEXT_GB - nothing) / one))


def must_recompute(batch_size: int, canvas: Sequence[int], free_bytes: int | None, **network) -> bool:
    """Return whether training needs recomputation because `free_bytes` do not hold it otherwise.

    Args:
        batch_size, canvas: as for `training_memory_gb`.
        free_bytes: memory of the device that can still be had; None where nothing tells it, which is never too little.
        network: the other keyword arguments of `training_memory_gb`, without `recompute`.
    """
    return (
        free_bytes is not None and training_memory_gb(batch_size, canvas, **network) > SHARE_OF_FREE * free_bytes / 1e9
    )


def describe_training_memory(
    batch_size: int, canvas: Sequence[int], *, recompute: bool, mode: str = FLOAT32, **network
) -> str:
    """Return for the log what training takes with `recompute` as it is, and what the other choice would take.

    network: the other keyword arguments of `training_memory_gb`.
    """
    gb = {
        choice: training_memory_gb(batch_size, canvas, recompute=choice, mode=mode, **network)
        for choice in (True, False)
    }
    return format_recompute_tradeoff(f"{batch_size} images of {format_shape(canvas)}", gb, recompute, mode)


def format_recompute_tradeoff(batch: str, gb: Mapping[bool, float], recompute: bool, mode: str = FLOAT32) -> str:
    """Return the same for any network: `gb` is what training takes with recomputation (True) and without."""
    taken, other = (f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in (gb[recompute], gb[not recompute]))
    price = "a quarter less time for a step" if recompute else "a third more time for a step"
    return (
        f"Training takes about {taken} GB in {IN_WORDS[mode]} for {batch}"
        f"{', less in mixed precision' if mode == FLOAT32 else ''}. With "
        f'"recompute": {str(not recompute).lower()} among the arch_kwargs of the plans it would be about '
        f"{other} GB and {price}."
    )


def describe_memory_without_recompute(kept_gb: float, total_gb: float, dataset: int) -> str | None:
    """Return how to train without recomputation where the GPU has room for it; None where it has not.

    Args:
        kept_gb: what training would take without recomputation.
        total_gb: memory of the GPU.
        dataset: its number.
    """
    target = ceil(kept_gb + GPU_CONTEXT_GB)
    if target > total_gb:
        return None
    return (
        f"The plans recompute layers to save memory, and this GPU has {total_gb:.0f} GB. Without recomputation a step "
        f"takes about a quarter less time: plan with nnUNetv2_plan_experiment -d {dataset} -pl nnUNetPlannerHRMedSeg "
        f"-gpu_memory_target {target}, and train with -p nnUNetHRMedSegPlans."
    )
