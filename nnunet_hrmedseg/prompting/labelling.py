"""Prompted masks as an nnU-Net raw dataset: from boxes to training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from nnunet_hrmedseg.io.files import check_output_dir
from nnunet_hrmedseg.io.image_formats import open_image
from nnunet_hrmedseg.io.new_dataset import (
    building_directory,
    free_dataset_folder,
    split_dataset_name,
    write_dataset_json,
)
from nnunet_hrmedseg.nnunet_versions import nnunet_folder, required_nnunet_folder

__all__ = ["NewDataset"]


class NewDataset:
    """A raw dataset of PNG files that is written while `writing()` is entered.

    Args:
        full_name: Dataset123_Name, free in nnUNet_raw, nnUNet_preprocessed and nnUNet_results.
        classes: Name -> value, from 1 on, without gaps.
        gray: One channel; otherwise three, and gray images are repeated.

    Attributes:
        folder: Of the dataset.
        incomplete: Folder to write to while `writing()` is entered.

    Raises:
        PlanError: The name is not that of a dataset, or its number is taken.
        SetupError: nnUNet_raw is not set or cannot be written to, or the dataset exists already.
    """

    def __init__(self, full_name: str, classes: dict[str, int], *, gray: bool) -> None:
        raw = Path(required_nnunet_folder("nnUNet_raw"))
        number, name = split_dataset_name(full_name)
        check_output_dir(raw)
        others = [Path(folder) for folder in map(nnunet_folder, ("nnUNet_preprocessed", "nnUNet_results")) if folder]
        self.folder = free_dataset_folder(raw, number, name, others=others)
        self.classes, self.gray = classes, gray
        self.incomplete = self.folder
        self.cases: set[str] = set()

    @contextmanager
    def writing(self) -> Iterator[NewDataset]:
        """Write the dataset: it appears complete at the end, or not at all if anything fails."""
        with building_directory(self.folder) as self.incomplete:
            for part in ("imagesTr", "labelsTr"):
                (self.incomplete / part).mkdir()
            yield self
            write_dataset_json(
                self.incomplete,
                channels=["gray"] if self.gray else ["R", "G", "B"],
                labels={"background": 0, **self.classes},
                cases=len(self.cases),
                file_ending=".png",
                description="labels made by hrmedseg segment from boxes and points",
            )

    def add(self, case: str, file: Path, image: Image.Image, label_map: np.ndarray) -> None:
        """Write a case.

        Args:
            case: Its name.
            file: Its image.
            image: The same image as it was read, mode L or RGB.
            label_map: (H, W), uint8.
        """
        pixels = (_read_sixteen_bit(file) if self.gray else None) or image.convert("L" if self.gray else "RGB")
        pixels.save(self.incomplete / "imagesTr" / f"{case}_0000.png")
        Image.fromarray(label_map).save(self.incomplete / "labelsTr" / f"{case}.png")
        self.cases.add(case)


def _read_sixteen_bit(file: Path) -> Image.Image | None:
    """Return a gray image of 16 bits with all of them; None for other images."""
    try:
        with open_image(str(file)) as opened:
            if not (opened.mode == "I" or opened.mode.startswith("I;16")):
                return None
            pixels = np.asarray(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError:  # a TIFF that Pillow does not know, such as one of 64-bit floats
        return None
    if pixels.min() < 0 or pixels.max() > 65535:
        return None
    return Image.fromarray(pixels.astype(np.uint16))
