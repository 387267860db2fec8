"""From the masks of many prompts to one label map: classes are numbered, and one object lies on top of the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from nnunet_hrmedseg.errors import DataError
from nnunet_hrmedseg.prompting.predictor import Predictor
from nnunet_hrmedseg.prompting.prompts import Prompt

__all__ = ["Objects", "class_values", "find_objects"]


@dataclass(frozen=True)
class Objects:
    """What the prompts of an image found.

    Attributes:
        numbers: (H, W) int32, 0 or the number of the object on top, counted from 1 in the order of the prompts.
        values: class of each object.
        scores: the IoU that the decoder predicts for each.
        areas: pixels of each mask, before others were laid over it.
    """

    numbers: np.ndarray
    values: list[int]
    scores: list[float]
    areas: list[int]

    def label_map(self, instances: bool = False) -> np.ndarray:
        """(H, W) classes, or numbers of objects; uint8, or uint16 where there are more than 255 of them."""
        values = range(1, len(self.values) + 1) if instances else self.values
        dtype = np.uint8 if max(values, default=0) < 256 else np.uint16
        return np.array([0, *values], dtype)[self.numbers]


def class_values(prompts: Iterable[Prompt]) -> dict[str, int]:
    """Class -> its value, 1, 2, ...: numbers in their order, then names in alphabetical order.

    Raises:
        DataError: A class with a name that nnU-Net gives another meaning.
    """
    names = {prompt.category for prompt in prompts}
    for name in ("background", "ignore"):
        if name in names:
            raise DataError(f"A class cannot be called {name!r}: nnU-Net means something else by it.")
    ordered = sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
    return {name: value for value, name in enumerate(ordered, start=1)}


def find_objects(
    predictor: Predictor, image: Image.Image, prompts: Sequence[Prompt], values: dict[str, int], multimask: bool | None
) -> Objects:
    """Encode the image and lay the masks of its prompts over each other: a later prompt over an earlier one.

    Raises:
        DataError: A prompt outside of the image.
    """
    numbers = np.zeros((image.height, image.width), np.int32)
    scores, areas = [0.0] * len(prompts), [0] * len(prompts)
    if prompts:
        predictor.set_image(image)
    for index, mask, score in predictor.predict_prompts(prompts, multimask):
        scores[index], areas[index] = score, int(mask.sum())
        numbers[mask & (numbers < index + 1)] = index + 1
    return Objects(numbers, [values[prompt.category] for prompt in prompts], scores, areas)
