"""From logits to label values and probabilities, by nnU-Net's rules."""

from __future__ import annotations

import numpy as np

from nnunet_hrmedseg.deployment.sidecar import Sidecar

__all__ = ["label_values", "no_probabilities", "probabilities"]


def label_values(logits: np.ndarray, sidecar: Sidecar) -> np.ndarray:
    """(K, Y, X) -> (Y, X): the label of the largest logit; with regions, the last in order whose logit is positive."""
    if not sidecar.has_regions:
        return logits.argmax(axis=0)
    values = np.zeros(logits.shape[1:], dtype=np.uint16)
    for region, label in zip(logits, sidecar.regions_class_order or [], strict=True):
        values[region > 0] = label
    return values


def probabilities(logits: np.ndarray, sidecar: Sidecar) -> np.ndarray:
    """(K, Y, X) -> the same, float32: softmax over labels, or a sigmoid for each region."""
    if sidecar.has_regions:
        with np.errstate(over="ignore"):  # exp(inf) -> 1 / inf = 0 is right
            return 1 / (1 + np.exp(-logits))
    powers = np.exp(logits - logits.max(axis=0))
    return powers / powers.sum(axis=0)


def no_probabilities(shape: tuple[int, ...], sidecar: Sidecar) -> np.ndarray:
    """(K, Z, Y, X) float32 of an image in which nothing was found: what is left outside of the crop."""
    values = np.zeros((sidecar.num_outputs, *shape), dtype=np.float32)
    if not sidecar.has_regions:
        values[0] = 1
    return values
