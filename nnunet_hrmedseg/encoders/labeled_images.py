"""Labeled 2D nnU-Net raw datasets as one stream of training images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from nnunet_hrmedseg.architectures.lgvit import PATCH_SIZE
from nnunet_hrmedseg.errors import DataError, HRMedSegError, format_names
from nnunet_hrmedseg.io.files import read_json
from nnunet_hrmedseg.io.image_check import all_digits
from nnunet_hrmedseg.io.raw_cases import (
    RawCase,
    describe_unused_files,
    find_raw_cases,
    find_reader_by_trying,
    resolve_source,
)
from nnunet_hrmedseg.io.stored_images import CaseFiles, case_pixels, check_format, describe_read_error
from nnunet_hrmedseg.weights.student import Normalize

__all__ = [
    "LabeledDataset",
    "LabeledImages",
    "LabeledItem",
    "find_labeled_dataset",
    "read_labeled",
    "resized",
]

SCALES = (0.75, 0.875, 1.0, 1.125, 1.25)
"""Sides of the canvas from step to step, in parts of the one that was asked for."""
FOREGROUND_WINDOWS = 1 / 3  # nnU-Net's oversampling of the foreground, for windows smaller than the image


@dataclass(frozen=True)
class LabeledDataset:
    """A raw dataset: name, cases, and the values in its labels.

    Attributes:
        name: of its folder.
        cases: images and label of each.
        reader: nnU-Net's, for both.
        num_classes: number of label values, background included, without the ignore label.
        ignore_label: its value, if there is one.
        skipped: sentences on files beside the cases.
    """

    name: str
    cases: list[RawCase]
    reader: type[BaseReaderWriter]
    num_classes: int
    ignore_label: int | None
    skipped: tuple[str, ...] = ()


def find_labeled_dataset(source: str | Path) -> LabeledDataset:
    """Find a dataset by name or number in nnUNet_raw, or by its folder.

    Raises:
        DataError: There is none, it has no labeled cases, they are volumes, or its dataset.json cannot be used.
    """
    folder = resolve_source(source)
    file = folder / "dataset.json"
    if not file.is_file():
        raise DataError(f"{folder} is not an nnU-Net raw dataset: there is no dataset.json in it.")
    try:
        description = read_json(file)
        labels = LabelManager(description["labels"], None, force_use_labels=True)
        if labels.all_labels != list(range(len(labels.all_labels))):
            raise ValueError(f"the label values are {', '.join(map(str, labels.all_labels))} and not 0, 1, 2, ...")
        found = find_raw_cases(folder, description) or {}
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RuntimeError) as error:
        if isinstance(error, HRMedSegError):
            raise
        raise DataError(f"{file} cannot be used: {type(error).__name__}: {error}") from error
    cases = [found[name] for name in sorted(found)]
    absent = [case.label for case in cases if not Path(case.label).is_file()]
    if absent or not cases:
        missing = f"these labels are missing: {format_names(absent)}" if absent else "there are none"
        raise DataError(f"{folder} has to hold labeled cases, in imagesTr and labelsTr: {missing}.")
    reader = find_reader_by_trying(folder, description, [case.images for case in cases])
    first = _read_label(reader, cases[0].label)
    if first.shape[1] != 1:
        raise DataError(
            f"{folder} holds volumes ({cases[0].label} has the shape {first.shape[1:]}): supervised pre-training takes "
            f"2D datasets. Volumes can serve as --images of `hrmedseg encoder distill`."
        )
    skipped = describe_unused_files(folder, cases)
    return LabeledDataset(folder.name, cases, reader, len(labels.all_labels), labels.ignore_label, tuple(skipped))


@dataclass(frozen=True)
class LabeledItem:
    """`image` (3, H, W) normalized and augmented, `label` (1, H, W), and the index of their dataset."""

    dataset: int
    image: Tensor
    label: Tensor


class LabeledImages(Dataset):
    """A stream of augmented images of several datasets.

    The image of item i and its augmentation depend on the seed and i alone: a run that is continued, or that uses
    another number of worker processes, sees the same images.

    All images of a step have the same size. Datasets are drawn by the square root of their number of cases: small ones
    more often than their share, large ones still most often.

    `zoom` is a range of magnifications. At 3 an item shows a window that is a third of the image in height and width:
    structures are then as large as on a canvas of three times the side. At 1/3 it shows the whole image at a third of
    the size, with mirrored copies of it around: many small structures in place of a large one.

    Args:
        datasets: at least one.
        canvas: (H, W) in pixels around which the size is drawn.
        normalize: what the student expects.
        zoom: lowest and highest magnification; it is drawn log-uniformly.
        items: number of items.
        step_items: consecutive items that make a step.
        seed: of everything that is drawn.
    """

    def __init__(
        self,
        datasets: Sequence[LabeledDataset],
        canvas: tuple[int, int],
        normalize: Normalize,
        *,
        zoom: tuple[float, float] = (1, 1),
        items: int,
        step_items: int,
        seed: int,
    ) -> None:
        self.datasets, self.canvas, self.normalize, self.zoom = list(datasets), canvas, normalize, zoom
        self.items, self.step_items, self.seed = items, step_items, seed
        shares = np.sqrt([len(dataset.cases) for dataset in self.datasets])
        self.shares = shares / shares.sum()

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, index: int) -> LabeledItem:
        step, place = divmod(index, self.step_items)
        scale = np.random.default_rng((self.seed, step)).choice(SCALES)
        size = tuple(max(PATCH_SIZE, round(side * scale / PATCH_SIZE) * PATCH_SIZE) for side in self.canvas)
        generator = np.random.default_rng((self.seed, step, place))
        number = int(generator.choice(len(self.datasets), p=self.shares))
        dataset = self.datasets[number]
        case = dataset.cases[generator.integers(len(dataset.cases))]
        image, label = read_labeled(dataset, case)
        lowest, highest = self.zoom
        zoom = math.exp(generator.uniform(math.log(lowest), math.log(highest)))
        if zoom > 1:
            image, label = _window(image, label, zoom, dataset.num_classes, generator)
        image, label = resized(image, label, tuple(max(1, round(side * min(zoom, 1))) for side in size))
        if zoom < 1:
            image, label = _mirrored(image, label, size, generator)
        image = self.normalize(image[None])[0]
        # nnU-Net's transforms draw from both global generators
        drawn = int(generator.integers(2**31))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(drawn)
            np.random.seed(drawn)
            both = _augmentation(size)(image=image, segmentation=label)
        return LabeledItem(number, both["image"], both["segmentation"])


def read_labeled(dataset: LabeledDataset, case: RawCase) -> tuple[Tensor, Tensor]:
    """Image (3, H, W) float32 in 0..1 and label (1, H, W) float32 of a case.

    Raises:
        DataError: One of them cannot be read, they are of different sizes, or the label has a value that
            dataset.json does not.
    """
    try:
        pixels = case_pixels(CaseFiles.of(case.images, dataset.reader))[0]
    except Exception as error:
        raise DataError(f"{case.images[0]} cannot be read: {describe_read_error(error)}.") from error
    image = torch.from_numpy(np.array(pixels)).float() / 255
    image = image.expand(3, -1, -1) if image.ndim == 2 else image.permute(2, 0, 1)
    label = torch.from_numpy(_read_label(dataset.reader, case.label)[0].astype(np.float32))
    if image.shape[1:] != label.shape[1:]:
        raise DataError(
            f"{case.images[0]} is {tuple(image.shape[1:])} pixels and {case.label} {tuple(label.shape[1:])}."
        )
    highest = dataset.num_classes - 1 if dataset.ignore_label is None else dataset.ignore_label
    wrong = (label < 0) | (label > highest) | (label != label.round())
    if wrong.any():
        value = all_digits(np.float32(label[wrong].max().item()))
        raise DataError(f"{case.label} has the value {value}, which dataset.json does not list.")
    return image, label


def resized(image: Tensor, label: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Image (3, *size) float32 and label (1, *size) int16."""
    image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    return image, F.interpolate(label[None], size, mode="nearest-exact")[0].to(torch.int16)


def _window(
    image: Tensor, label: Tensor, zoom: float, num_classes: int, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Crop a window of 1/zoom of the image's size, at a random position or around a random foreground pixel."""
    sides = np.array(image.shape[1:])
    window = np.maximum(1, np.rint(sides / zoom)).astype(int)
    corner = generator.integers(sides - window + 1)
    if generator.random() < FOREGROUND_WINDOWS:
        foreground = ((label[0] > 0) & (label[0] < num_classes)).nonzero()
        if len(foreground):
            pixel = foreground[generator.integers(len(foreground))].numpy()
            corner = np.clip(pixel - window // 2, 0, sides - window)
    (top, left), (height, width) = corner.tolist(), window.tolist()
    return image[:, top : top + height, left : left + width], label[:, top : top + height, left : left + width]


def _mirrored(
    image: Tensor, label: Tensor, size: tuple[int, int], generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Crop a window of this size, at a random position of the plane tiled by the image and its mirrored copies."""
    rows, columns = (
        torch.from_numpy(_mirrored_indices(side, generator.integers(2 * side) + np.arange(length)))
        for side, length in zip(image.shape[1:], size, strict=True)
    )
    return image[:, rows][:, :, columns], label[:, rows][:, :, columns]


def _mirrored_indices(side: int, positions: np.ndarray) -> np.ndarray:
    """0, 1, ..., side - 1, side - 1, ..., 1, 0, 0, 1, ..."""
    positions = positions % (2 * side)
    return np.minimum(positions, 2 * side - 1 - positions)


def _read_label(reader: type[BaseReaderWriter], file: str) -> np.ndarray:
    """(1, Z, Y, X), Z = 1 for an image."""
    try:
        check_format(file)
        return reader().read_seg(file)[0]
    except Exception as error:
        raise DataError(f"The label {file} cannot be read: {describe_read_error(error)}.") from error


@lru_cache(maxsize=64)
def _augmentation(size: tuple[int, int]) -> BasicTransform:
    """nnU-Net's own, as a 2D configuration of this patch size gets it."""
    transforms = nnUNetTrainer.get_training_transforms(
        size, (-np.pi, np.pi), None, (0, 1), False, use_mask_for_norm=[False] * 3
    )
    for transform in transforms.transforms:
        blur = getattr(transform, "transform", None)
        if isinstance(blur, GaussianBlurTransform):
            blur.benchmark = False  # would take the faster of two ways, which differ in the last digits
    return transforms
