"""How much memory training takes, and so how many images fit into a batch.

A straight line through counted allocations: HRMedSeg keeps everything but the image at 1/16 or 1/4 resolution, so
memory grows with the number of pixels, and per pixel with the width and depth of the encoder. The coefficients were
fitted to the peak of live tensors in forward pass, loss, backward pass and optimiser state in float32
(benchmarks/training_memory.py; the result file says on what). nnU-Net trains in mixed precision on a GPU, which takes
less: the estimate errs on the side that does not run out of memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from nnunet_hrmedseg.errors import size

__all__ = ["choice_in_words", "largest_batch_size", "said_in_words", "training_memory_gb"]


@dataclass(frozen=True)
class Coefficients:
    """Bytes per pixel of the canvas: a constant, and per unit of each of these."""

    constant: float
    width: float
    width_and_layer: float
    classes: float
    channels: float


FAST = Coefficients(constant=124.0, width=0.60, width_and_layer=0.31, classes=2.0, channels=4.8)
FRUGAL = Coefficients(constant=15.5, width=0.58, width_and_layer=0.015, classes=0.3, channels=5.5)
"""With recomputation in the backward pass."""

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
    depth: int | Sequence[int] = 10,
    recompute: bool = False,
) -> float:
    """Peak memory of tensors in a training step, in GB (1e9 bytes), without the GPU's context.

    Args:
        batch_size: images.
        canvas: (height, width) in pixels.
        num_input_channels, num_classes: of the network.
        embed_dim, depth: width C and number of token-interactive layers L of the encoder (or its groups' sizes).
        recompute: whether layers are evaluated again in the backward pass.
    """
    depth = depth if isinstance(depth, int) else sum(depth)
    bytes_per = FRUGAL if recompute else FAST
    per_pixel = (
        bytes_per.constant
        + bytes_per.width * embed_dim
        + bytes_per.width_and_layer * embed_dim * depth
        + bytes_per.classes * num_classes
        + bytes_per.channels * num_input_channels
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


def said_in_words(batch_size: int, canvas: Sequence[int], *, recompute: bool, **network) -> str:
    """What training takes with `recompute` as it is, and what the other choice would cost; for the log.

    network: the other keyword arguments of `training_memory_gb`.
    """
    gb = {choice: training_memory_gb(batch_size, canvas, recompute=choice, **network) for choice in (True, False)}
    return choice_in_words(f"{batch_size} images of {size(canvas)}", gb, recompute)


def choice_in_words(batch: str, gb: Mapping[bool, float], recompute: bool) -> str:
    """The same of any network: `gb` says what training takes with recomputation (True) and without."""
    taken, other = (f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in (gb[recompute], gb[not recompute]))
    price = "a quarter less time for a step" if recompute else "a third more time for a step"
    return (
        f"Training takes about {taken} GB in float32 for {batch}, less in mixed precision. With "
        f'"recompute": {str(not recompute).lower()} among the arch_kwargs of the plans it would be about '
        f"{other} GB and {price}."
    )
