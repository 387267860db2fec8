"""Supervised pre-training on several labeled datasets at once: one encoder, one decoder, own class queries for each.

The class queries of the ECM-Decoder are all that depends on the classes, so the datasets share everything else. What
is kept is the encoder and the neck.

The images of a batch are of several datasets. With one dataset per batch the updates pull in a different direction at
every step, and the network ends in answering every image of a dataset alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_hrmedseg.architectures import HRMedSeg
from nnunet_hrmedseg.encoders.labeled_images import LabeledDataset
from nnunet_hrmedseg.trainers.losses import dice_and_focal

__all__ = ["SupervisedPretraining"]


class SupervisedPretraining(nn.Module):
    """Network and objective: a batch -> Dice + focal loss, each image's of the classes of its dataset.

    Args:
        architecture: as of `encoder_architecture`; the decoder is HRMedSeg's of that width.
        datasets: one after the other; a batch names its dataset by the number in this order.
        drop_path: stochastic depth while training.
    """

    def __init__(
        self, architecture: dict[str, Any], datasets: Sequence[LabeledDataset], drop_path: float = 0.1
    ) -> None:
        super().__init__()
        sizes = [dataset.num_classes for dataset in datasets]
        self.network = HRMedSeg(3, sum(sizes), drop_path=drop_path, **architecture)
        self.queries = ClassQueries(self.network.decoder.seg_layers.queries, sizes)
        self.network.decoder.add_module("seg_layers", self.queries)
        self.losses = nn.ModuleList(
            dice_and_focal(regions=False, ignore_label=dataset.ignore_label) for dataset in datasets
        )

    def forward(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Numbers of the datasets (B,), images (B, 3, H, W) normalized, labels (B, 1, H, W) -> scalar."""
        numbers, images, labels = batch
        embedding = self.network.neck(self.network.encoder(images))
        total = embedding.new_zeros(())
        for number in numbers.unique().tolist():
            members = (numbers == number).nonzero()[:, 0]
            self.queries.chosen = number
            logits = F.interpolate(
                self.network.decoder(embedding[members]), size=images.shape[2:], mode="bilinear", align_corners=False
            )
            total = total + self.losses[number](logits, labels[members]) * (len(members) / len(numbers))
        return total


class ClassQueries(nn.Module):
    """In the place of the decoder's `seg_layers`: the class queries of all datasets, of which it shows one's."""

    def __init__(self, queries: Tensor, sizes: Sequence[int]) -> None:
        super().__init__()
        self.all_queries = nn.Parameter(queries.detach().clone())
        self.class_mlp = nn.Identity()  # the shared one of the decoder
        ends = torch.tensor(sizes).cumsum(0).tolist()
        self.parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        self.chosen = 0

    @property
    def queries(self) -> Tensor:
        """(K, dim) of the chosen dataset."""
        return self.all_queries[self.parts[self.chosen]]
