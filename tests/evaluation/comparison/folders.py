"""Small datasets and trained models in nnU-Net's layout, without training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

DATASET = "Dataset007_shapes"
DESCRIPTION = {
    "channel_names": {"0": "R", "1": "G", "2": "B"},
    "labels": {"background": 0, "disc": 1, "square": 2},
    "numTraining": 6,
    "file_ending": ".png",
}
SIDE = 48


def truth(case: int) -> np.ndarray:
    """Return a disc and a square at different positions in each case; case 0 has no square."""
    y, x = np.mgrid[:SIDE, :SIDE]
    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[(y - 14 - case) ** 2 + (x - 14) ** 2 < 64] = 1
    if case:
        labels[28:40, 24 + case : 36 + case] = 2
    return labels


def write_dataset(root: Path, cases: int = 6) -> None:
    """Write imagesTr, labelsTr and dataset.json in root/nnUNet_raw."""
    raw = root / "nnUNet_raw" / DATASET
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    (raw / "dataset.json").write_text(json.dumps(DESCRIPTION))
    for case in range(cases):
        labels = truth(case)
        image = np.stack([90 + 60 * labels] * 3, axis=-1).astype(np.uint8)
        Image.fromarray(image).save(raw / "imagesTr" / f"case{case}_0000.png")
        Image.fromarray(labels).save(raw / "labelsTr" / f"case{case}.png")
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        (root / name).mkdir()


def write_model(root: Path, name: str, shift: int, folds: dict[int, list[int]] | None = None) -> Path:
    """Write a model folder without checkpoint, with the truth shifted to the right by `shift` pixels as predictions."""
    folder = root / "nnUNet_results" / DATASET / name
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(DESCRIPTION))
    (folder / "plans.json").write_text("{}")
    for fold, cases in (folds or {0: [0, 1, 2], 1: [3, 4, 5]}).items():
        validation = folder / f"fold_{fold}" / "validation"
        validation.mkdir(parents=True)
        for case in cases:
            Image.fromarray(np.roll(truth(case), shift, axis=1)).save(validation / f"case{case}.png")
    return folder
