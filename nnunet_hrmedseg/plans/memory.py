"""How much memory training takes, and so how many images fit into a batch.

A straight line through counted allocations: HRMedSeg keeps everything but the logits at 1/16 resolution, so memory
grows with the number of pixels, and per pixel with the width and depth of the encoder and the number of classes. The
coefficients were fitted to the peak of live tensors in forward pass, loss, backward pass and optimiser state in
float32 (benchmarks/training_memory.py; the result file says on what). nnU-Net trains in mixed precision on a GPU,
which takes less: the estimate errs on the side that does not run out of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

__all__ = ["largest_batch_size", "training_memory_gb"]

BYTES_PER_PIXEL = 107.0
BYTES_PER_PIXEL_AND_WIDTH = 0.91
BYTES_PER_PIXEL_WIDTH_AND_LAYER = 0.32
BYTES_PER_PIXEL_AND_CLASS = 20.0
BYTES_PER_PIXEL_AND_CHANNEL = 4.0

PARAMETERS_WITHOUT_ENCODER = 2.3e6
PARAMETERS_PER_LAYER_AND_SQUARED_WIDTH = 8.73
BYTES_PER_PARAMETER = 4 * 4  # weight, gradient and Adam's two averages in float32

GPU_CONTEXT_GB = 0.5  # what the driver and its libraries take before the first tensor


def training_memory_gb(
    batch_size: int,
    canvas: Sequence[int],
    *,
    num_input_channels: int,
    num_classes: int,
    embed_dim: int = 96,
    depth: int = 10,
) -> float:
    """Peak memory of tensors in a training step, in GB (1e9 bytes), without the GPU's context.

    Args:
        batch_size: images.
        canvas: (height, width) in pixels.
        num_input_channels, num_classes: of the network.
        embed_dim, depth: width C and number of token-interactive layers L of the encoder.
    """
    per_pixel = (
        BYTES_PER_PIXEL
        + BYTES_PER_PIXEL_AND_WIDTH * embed_dim
        + BYTES_PER_PIXEL_WIDTH_AND_LAYER * embed_dim * depth
        + BYTES_PER_PIXEL_AND_CLASS * num_classes
        + BYTES_PER_PIXEL_AND_CHANNEL * num_input_channels
    )
    parameters = PARAMETERS_WITHOUT_ENCODER + PARAMETERS_PER_LAYER_AND_SQUARED_WIDTH * embed_dim**2 * depth
    return (batch_size * prod(canvas) * per_pixel + BYTES_PER_PARAMETER * parameters) / 1e9


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
