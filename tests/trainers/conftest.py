"""A tiny dataset for the trainers: five images of discs."""

import json

import numpy as np
import pytest
from skimage import io

from nnunet_hrmedseg.nnunet_versions import nnunet_folders

LABELS = {"background": 0, "disc": 1, "ring": 2}
REGIONS = {"background": 0, "whole": [1, 2], "ring": 2}
IGNORE = {**LABELS, "ignore": 3}
REGIONS_AND_IGNORE = {**REGIONS, "ignore": 3}


def dataset_json(labels, channels, file_ending):
    """Return the dataset.json of five cases; regions are drawn in the order 1, 2."""
    description = {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": labels,
        "numTraining": 5,
        "file_ending": file_ending,
    }
    if any(isinstance(label, list) for label in labels.values()):
        description["regions_class_order"] = [1, 2]
    return description


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Return a function that writes a raw dataset of five discs and returns its dataset.json."""
    folders = {name: tmp_path / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in folders.values():
        folder.mkdir()
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")

    def write(labels):
        description = dataset_json(labels, ["R", "G", "B"], ".png")
        root = tmp_path / "nnUNet_raw" / "Dataset001_Test"
        for folder in ("imagesTr", "labelsTr"):
            (root / folder).mkdir(parents=True)
        rows, columns = np.mgrid[:40, :50]
        random = np.random.default_rng(0)
        for case in range(5):
            distance = np.hypot(rows - random.integers(15, 25), columns - random.integers(15, 35))
            label = (distance < 12).astype(np.uint8) + (distance < 6)
            if "ignore" in labels:
                label[:8] = 3
            image = np.stack([60 * label + random.integers(0, 20, label.shape)] * 3, -1).astype(np.uint8)
            io.imsave(root / "imagesTr" / f"case_{case}_0000.png", image, check_contrast=False)
            io.imsave(root / "labelsTr" / f"case_{case}.png", label.astype(np.uint8), check_contrast=False)
        preprocessed = tmp_path / "nnUNet_preprocessed" / "Dataset001_Test"
        preprocessed.mkdir()
        for folder in (root, preprocessed):
            (folder / "dataset.json").write_text(json.dumps(description))
        (preprocessed / "dataset_fingerprint.json").write_text("{}")
        return description

    with nnunet_folders(**folders):
        yield write
