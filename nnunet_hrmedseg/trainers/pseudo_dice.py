"""Counts behind nnU-Net's pseudo Dice: true positives, false positives and false negatives of hard predictions.

nnU-Net's `validation_step` compares the whole batch at once, in some eight float32 maps for each class at full
resolution. Here a batch is compared piece by piece: the counts are the same, and the memory does not grow with the
number of classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn
from torch import Tensor

__all__ = ["hard_counts", "hard_counts_in_slabs"]

LOGITS_IN_A_SLAB = 2**21


def hard_counts(logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None) -> Tensor:
    """Return true positives, false positives and false negatives of each head, as nnU-Net counts them: (3, K), int64.

    Args:
        logits: (B, K, ...).
        target: labels (B, 1, ...), or regions (B, K, ...), followed by a channel of ignored pixels where there is an
            ignore label.
        regions: whether targets are regions.
        ignore_label: value of ignored pixels in label targets; None where the dataset has none.
    """
    mask = None
    if regions:
        predicted = (logits.sigmoid() > 0.5).float()
        if ignore_label is not None:
            mask = (target[:, -1:] == 0).float()
            target = target[:, :-1]
    else:
        predicted = torch.zeros_like(logits, dtype=torch.float32).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
        if ignore_label is not None:
            mask = (target != ignore_label).float()
            target = target.masked_fill(target == ignore_label, 0)
    axes = (0, *range(2, logits.ndim))
    return torch.stack(get_tp_fp_fn_tn(predicted, target, axes=axes, mask=mask)[:3]).long()


def hard_counts_in_slabs(logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None) -> Tensor:
    """Return `hard_counts` of logits at full resolution (B, K, ...), counted in slabs of one image: (3, K), int64."""
    counts = torch.zeros(3, logits.shape[1], dtype=torch.int64, device=logits.device)
    for piece, truth in slabs(logits, target):
        counts += hard_counts(piece, truth, regions, ignore_label)
    return counts


def slabs(logits: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits and target of one image at a time, in slabs along the first spatial axis."""
    images, _, length, *_ = logits.shape
    of_a_slab = max(1, LOGITS_IN_A_SLAB * images * length // logits.numel())
    for image, truth in zip(logits.split(1), target.split(1), strict=True):
        yield from zip(image.split(of_a_slab, dim=2), truth.split(of_a_slab, dim=2), strict=True)
