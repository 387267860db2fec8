"""Prompted masks as an nnU-Net raw data set: from boxes to training."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from nnunet_hrmedseg.errors import HRMedSegError, format_names
from nnunet_hrmedseg.io.files import check_output_dir
from nnunet_hrmedseg.io.image_formats import open_image
from nnunet_hrmedseg.nnunet_versions import nnunet_folder

__all__ = ["NewDataset"]


class NewDataset:
    """A raw data set of PNGs that is being written; it has its name when it is whole.

    As a context manager: left by an exception, nothing stays.

    Args:
        name: Dataset123_Name, free in nnUNet_raw, nnUNet_preprocessed and nnUNet_results.
        classes: name -> value, from 1 on, without gaps.
        grey: one channel; else three, and grey images are repeated.

    Raises:
        HRMedSegError: nnUNet_raw is not set, the name is none, or its number is taken.
    """

    def __init__(self, name: str, classes: dict[str, int], *, grey: bool) -> None:
        raw = nnunet_folder("nnUNet_raw")
        if raw is None:
            raise HRMedSegError("The environment variable nnUNet_raw is not set: that is where data sets are.")
        if not re.fullmatch(r"Dataset\d{3}_[A-Za-z0-9_-]+", name):
            raise HRMedSegError(f"{name!r} is no name of a data set: nnU-Net's are like Dataset123_Nuclei.")
        others = map(nnunet_folder, ("nnUNet_preprocessed", "nnUNet_results"))
        check_output_dir(Path(raw))
        folders = [Path(folder) for folder in (raw, *others) if folder]
        taken = [str(path) for folder in folders for path in sorted(folder.glob(f"{name[:10]}_*"))]
        if taken:
            raise HRMedSegError(f"The number of {name} is taken by {format_names(taken)}. Choose another one.")
        self.folder, self.classes, self.grey = Path(raw, name), classes, grey
        self.incomplete = Path(raw, f"incomplete_{name}")
        self.cases: set[str] = set()

    def __enter__(self) -> NewDataset:
        shutil.rmtree(self.incomplete, ignore_errors=True)
        for part in ("imagesTr", "labelsTr"):
            (self.incomplete / part).mkdir(parents=True)
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None or not self.cases:
            shutil.rmtree(self.incomplete, ignore_errors=True)
            return
        names = ["grey"] if self.grey else ["R", "G", "B"]
        description = {
            "channel_names": {str(channel): name for channel, name in enumerate(names)},
            "labels": {"background": 0, **self.classes},
            "numTraining": len(self.cases),
            "file_ending": ".png",
            "description": "labels made by hrmedseg segment from boxes and points",
        }
        (self.incomplete / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        os.replace(self.incomplete, self.folder)

    def add(self, case: str, file: Path, image: Image.Image, label_map: np.ndarray) -> None:
        """A case: its image file, the same as it was read (mode L or RGB), and its label map (H, W), uint8."""
        pixels = (_sixteen_bit(file) if self.grey else None) or image.convert("L" if self.grey else "RGB")
        pixels.save(self.incomplete / "imagesTr" / f"{case}_0000.png")
        Image.fromarray(label_map).save(self.incomplete / "labelsTr" / f"{case}.png")
        self.cases.add(case)


def _sixteen_bit(file: Path) -> Image.Image | None:
    """A grey image of 16 bits with all of them; None for others."""
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
