"""Conversion of logits to label values and probabilities, by nnU-Net's rules."""

from __future__ import annotations

import numpy as np

from hrmedseg_onnx.sidecar import Sidecar

__all__ = ["initial_probabilities", "label_values", "probabilities"]


def label_values(logits: np.ndarray, sidecar: Sidecar) -> np.ndarray:
    """Return the labels (Y, X) of logits (K, Y, X): the largest, or with regions the last positive one in order."""
    if not sidecar.has_regions:
        return logits.argmax(axis=0)
    values = np.zeros(logits.shape[1:], dtype=np.uint16)
    for region, label in zip(logits, sidecar.regions_class_order or [], strict=True):
        values[region > 0] = label
    return values


def probabilities(logits: np.ndarray, sidecar: Sidecar) -> np.ndarray:
    """Return the probabilities (K, Y, X) of logits: softmax over labels, or a sigmoid for each region."""
    if sidecar.has_regions:
        with np.errstate(over="ignore"):  # exp(inf) -> 1 / inf = 0 is right
            return 1 / (1 + np.exp(-logits))
    powers = np.exp(logits - logits.max(axis=0))
    return powers / powers.sum(axis=0)


def initial_probabilities(shape: tuple[int, ...], sidecar: Sidecar) -> np.ndarray:
    """Return probabilities (K, Z, Y, X) of an image without objects, as they remain outside of the crop."""
    values = np.zeros((sidecar.num_outputs, *shape), dtype=np.float32)
    if not sidecar.has_regions:
        values[0] = 1
    return values
