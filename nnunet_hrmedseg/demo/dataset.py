"""Write the demo's raw dataset: 24 microscopy images to train on and 8 held out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from skimage import io

__all__ = ["DATASET_ID", "DATASET_NAME", "PACKAGED", "build_dataset"]

_VALIDATION = ("nuclei_09", "nuclei_20")

PACKAGED = Path(__file__).parent / "data"
DATASET_ID = 1
DATASET_NAME = f"Dataset{DATASET_ID:03d}_Nuclei"


def build_dataset(raw: Path) -> Path:
    """Write `Dataset001_Nuclei` below `raw`: imagesTr, labelsTr, and the held-out imagesTs with their labelsTs.

    Gray images become RGB, as every case of an nnU-Net dataset has the same channels. The only fold of its
    splits_final.json has two cases for validation and 22 for training.

    Returns:
        the folder of the dataset.
    """
    dataset = raw / DATASET_NAME
    for packaged, suffix in (("train", "Tr"), ("held_out", "Ts")):
        images, labels = dataset / f"images{suffix}", dataset / f"labels{suffix}"
        images.mkdir(parents=True)
        labels.mkdir()
        for file in sorted((PACKAGED / packaged / "images").glob("*.jpg")):
            image = io.imread(file)
            if image.ndim == 2:
                image = np.repeat(image[..., None], 3, axis=-1)
            label = io.imread(PACKAGED / packaged / "labels" / f"{file.stem}.png") > 0
            io.imsave(images / f"{file.stem}_0000.png", image, check_contrast=False)
            io.imsave(labels / f"{file.stem}.png", label.astype(np.uint8), check_contrast=False)
    description = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "nucleus": 1},
        "numTraining": len(list((dataset / "imagesTr").glob("*.png"))),
        "file_ending": ".png",
        "licence": "CC0 1.0",
        "reference": "2018 Data Science Bowl, BBBC038v1",
    }
    (dataset / "dataset.json").write_text(json.dumps(description, indent=2))
    cases = sorted(file.stem for file in (dataset / "labelsTr").iterdir())
    split = {"train": [case for case in cases if case not in _VALIDATION], "val": list(_VALIDATION)}
    (dataset / "splits_final.json").write_text(json.dumps([split], indent=2))
    return dataset
