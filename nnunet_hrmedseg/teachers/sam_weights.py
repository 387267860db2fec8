"""The weights of a SAM in checkpoints of any training script, under the names of Meta's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from nnunet_hrmedseg.weights.unwrapping import unwrap

__all__ = ["sam_weights"]

KNOWN = ("image_encoder.patch_embed.proj.weight", "mask_decoder.iou_token.weight")
"""Weights by which a SAM is recognized; MobileSAM has only the second."""


def sam_weights(path: Path, checkpoint: dict[str, Any]) -> tuple[dict[str, Tensor], str]:
    """Return the weights of a SAM, wherever they are in a checkpoint, and a sentence on what was unwrapped.

    Args:
        path: Of the checkpoint, for messages.
        checkpoint: As it was loaded.

    Raises:
        CheckpointError: The checkpoint contains the weights of several SAMs.
    """
    return unwrap(path, checkpoint, KNOWN, "SAM")
