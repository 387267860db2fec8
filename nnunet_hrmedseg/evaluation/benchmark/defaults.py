"""Default sizes and batch sizes of a benchmark. Imports nothing, as the parser needs them."""

from __future__ import annotations

__all__ = ["DEFAULTS"]

DEFAULTS: dict[int, dict[str, list[int]]] = {
    2: {"sizes": [512, 1024, 2048], "training_batch_sizes": [1, 4, 16], "inference_batch_sizes": [1, 8]},
    3: {"sizes": [64, 128], "training_batch_sizes": [1, 2], "inference_batch_sizes": [1]},
}
"""Dimensions -> sizes and batch sizes, for images and for volumes."""
