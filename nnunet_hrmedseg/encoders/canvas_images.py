"""Images on the canvas, for a DataLoader; images that cannot be read are named and counted, and do not stop a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nnunet_hrmedseg.encoders.image_sources import ImageCollection
from nnunet_hrmedseg.errors import DataError, format_names
from nnunet_hrmedseg.io.fitting import fit_image
from nnunet_hrmedseg.io.stored_images import describe_read_error

__all__ = ["BrokenImages", "CanvasBatch", "CanvasImage", "CanvasImages"]


class CanvasImage(NamedTuple):
    """`image` is (3, H, W) uint8, RGB; None for a broken image, with the reason."""

    image_index: int
    image: Tensor | None
    reason: str = ""


class CanvasBatch(NamedTuple):
    """`indices` (B,) int64 and `images` (B, 3, H, W) uint8 of the readable images; index and reason of the others."""

    indices: Tensor
    images: Tensor
    broken: list[tuple[int, str]]


class CanvasImages(Dataset):
    """The images of a collection, resized to the canvas: bilinear, anti-aliased.

    For a DataLoader, `collate` is the collate_fn; B is smaller by the broken images of a batch, down to 0.

    Args:
        collection: from `find_images`.
        canvas: (H, W) in pixels.
        fit: "stretch", without keeping the aspect ratio, or "pad"; see `fitting`.
    """

    def __init__(self, collection: ImageCollection, canvas: tuple[int, int], fit: str = "stretch") -> None:
        self.collection = collection
        self.canvas = canvas
        self.fit = fit

    def __len__(self) -> int:
        return len(self.collection)

    def __getitem__(self, index: int) -> CanvasImage:
        stored = self.collection[index]
        try:
            image = fit_image(stored.read(), self.canvas, self.fit)
        except Exception as error:
            return CanvasImage(index, None, describe_read_error(error))
        return CanvasImage(index, torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous())

    def collate(self, items: list[CanvasImage]) -> CanvasBatch:
        readable = [(item.image_index, item.image) for item in items if item.image is not None]
        return CanvasBatch(
            torch.tensor([index for index, _ in readable], dtype=torch.long),
            torch.stack([image for _, image in readable]) if readable else torch.empty((0, 3, *self.canvas)).byte(),
            [(item.image_index, item.reason) for item in items if item.image is None],
        )


class BrokenImages:
    """The images of a collection that could not be read; each is logged once.

    Args:
        collection: from `find_images`.
        log: Prints a line of text.

    Attributes:
        reasons: index in the collection -> what is wrong with the image.
    """

    def __init__(self, collection: ImageCollection, *, log: Callable[[str], Any] = print) -> None:
        self.collection = collection
        self.log = log
        self.reasons: dict[int, str] = {}

    def add(self, index: int, reason: str) -> None:
        """Record a broken image. Raise DataError if no image is left that might be readable."""
        if index in self.reasons:
            return
        self.reasons[index] = reason
        self.log(f"Broken image, skipped: {self.collection[index].name}: {reason}")
        if len(self.reasons) >= len(self.collection):
            raise DataError(
                f"None of the {len(self.collection)} images can be read: {self.summary(names=3)}. Sources: "
                f"{format_names(list(self.collection.counts))}. Check that the files are complete, and images."
            )

    def summary(self, names: int = 5) -> str:
        """Return the number of broken images and the first few with the reason; empty if there are none."""
        listed = [f"{self.collection[index].name} ({reason})" for index, reason in sorted(self.reasons.items())]
        return f"{len(listed)} broken: {format_names(listed, names)}" if listed else ""
