"""Batches on their way to a GPU that augments them: images in half precision, labels in a byte where they fit.

nnU-Net's loader hands over float32 images and int16 labels, 14.7 MB for an RGB image of 1024 x 1024. One thread copies
all batches into pinned memory, and with a network as light as ours that thread is what limits a training. Here an image
takes half as much on its way from the worker to the GPU, where it becomes float32 again before it is augmented. Under
autocast the network's first convolution rounds the images to half precision anyway.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from threadpoolctl import threadpool_limits

__all__ = ["CompactDataLoader", "image_dtype", "loads_with", "target_dtype"]

OUTSIDE = -1
BOUNDED_NORMALIZATIONS = {
    "ZScoreNormalization",
    "CTNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
}
"""Those whose results half precision holds: at most 65504, and steps of a two-thousandth of the value."""


class CompactDataLoader(nnUNetDataLoader):
    """nnU-Net's loader; batches without transforms are collected in half precision, all others as nnU-Net does.

    Args:
        arguments: nnU-Net's.
        image_dtype: of the images in a batch.
    """

    def __init__(self, *arguments: Any, image_dtype: torch.dtype = torch.float16, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.image_dtype = image_dtype
        self.target_dtype = target_dtype(named["label_manager"] if "label_manager" in named else arguments[4])

    def generate_train_batch(self) -> dict[str, Any]:
        """Return "data" (B, C, H, W), "target" (B, 1, H, W) and "keys"; draws what nnU-Net's loader draws."""
        if self.transforms is not None or not self.patch_size_was_2d:
            return super().generate_train_batch()
        keys = self.get_indices()
        data: torch.Tensor | None = None
        with torch.no_grad(), threadpool_limits(limits=1, user_api=None):
            for index, key in enumerate(keys):
                oversample = self.get_do_oversample(index)
                image, segmentation, _, properties = self._data.load_case(key)
                lower, upper = self.get_bbox(image.shape[1:], oversample, properties["class_locations"])
                box = [list(bounds) for bounds in zip(lower, upper, strict=True)]
                image = torch.from_numpy(crop_and_pad_nd(image, box, 0))[:, 0]
                segmentation = torch.from_numpy(crop_and_pad_nd(segmentation, box, OUTSIDE))[:, 0]
                if data is None:
                    data = self.empty(image.shape, self.image_dtype)
                    target = self.empty(segmentation.shape, self.target_dtype)
                data[index], target[index] = image, segmentation  # converted while they are copied
        return {"data": data, "target": target, "keys": keys}

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """Return an uninitialized batch; in a worker it lies in the memory that the main process will read it from."""
        whole = (self.batch_size, *shape)
        if not in_worker():
            return torch.empty(whole, dtype=dtype)
        # as torch's default_collate: sending any other tensor copies it into shared memory
        storage = torch.UntypedStorage._new_shared(prod(whole) * dtype.itemsize)
        return torch.empty(0, dtype=dtype).set_(storage, 0, (prod(whole),), (1,)).view(whole)


def in_worker() -> bool:
    return multiprocessing.parent_process() is not None


def image_dtype(normalization_schemes: Sequence[str]) -> torch.dtype:
    """Return float16 if it holds what these normalizations produce, else float32."""
    return torch.float16 if set(normalization_schemes) <= BOUNDED_NORMALIZATIONS else torch.float32


def target_dtype(label_manager: LabelManager) -> torch.dtype:
    """Return int8 if it holds all labels, the ignore label and -1 (outside), else nnU-Net's int16."""
    labels = [OUTSIDE, *label_manager.all_labels]
    if label_manager.has_ignore_label:
        labels.append(label_manager.ignore_label)
    limits = torch.iinfo(torch.int8)
    return torch.int8 if limits.min <= min(labels) and max(labels) <= limits.max else torch.int16


@contextmanager
def loads_with(loader: Callable[..., nnUNetDataLoader]) -> Iterator[None]:
    """Inside, nnUNetTrainer.get_dataloaders makes its loaders with this; it has no other place to name them."""
    before = trainer_module.nnUNetDataLoader
    trainer_module.nnUNetDataLoader = loader
    try:
        yield
    finally:
        trainer_module.nnUNetDataLoader = before
