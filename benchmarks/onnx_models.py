"""The model that the benchmarks of exported models use: HRMedSeg after one epoch on nuclei, on two canvases.

The model is trained on 60 images of dsb2018 on a canvas of 512 x 512, in some minutes of two CPU cores. The same
weights on a canvas of 1024 x 1024 show the speed of that canvas; how well they segment there is beside the point. 40
other images are predicted.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from nnunet_hrmedseg import export_onnx

try:
    from benchmarks.real_data import DATASETS, PLANS, command, folder_name, write_raw
except ModuleNotFoundError:  # as a script
    from real_data import DATASETS, PLANS, command, folder_name, write_raw  # type: ignore[import-not-found, no-redef]

__all__ = ["CANVASES", "calibration_files", "exported_model", "prepare", "read_mask", "tested_files", "trained_model"]

CANVASES = {512: "2d_512", 1024: "2d"}
"""Side of the canvas -> configuration of the plans."""
TRAINER = "nnUNetTrainerHRMedSeg_1epoch"
TRAINED = replace(DATASETS["dsb2018"], number=951, cases=60)
TESTED = replace(TRAINED, number=952, first=60, cases=40)


def prepare(data: Path, work: Path) -> None:
    """Write the raw datasets, train, and export the model on each canvas, unless that is done already."""
    for dataset in (TRAINED, TESTED):
        if not (_raw(work, dataset) / "dataset.json").is_file():
            write_raw(data, _raw(work, dataset), "dsb2018", dataset)
    side, *others = CANVASES
    if not _checkpoint(work, side).is_file():
        configuration, number = CANVASES[side], TRAINED.number
        shared = ["-d", number, "-c", configuration, "-npfp", 1, "-np", 1]
        command(work, "nnUNetv2_plan_and_preprocess", *shared, "-pl", "nnUNetPlannerHRMedSeg")
        command(work, "nnUNetv2_train", number, configuration, 0, "-tr", TRAINER, "-p", PLANS, "-device", "cpu")
    for other in others:
        if not _checkpoint(work, other).is_file():
            _put_on_canvas(work, side, other)
    for each in CANVASES:
        if not exported_model(work, each).is_dir():
            export_onnx(model=trained_model(work, each), output=exported_model(work, each))


def trained_model(work: Path, side: int) -> Path:
    """Return the folder of the trained model on a canvas, for `nnUNetv2_predict_from_modelfolder`."""
    return work / "nnUNet_results" / folder_name("dsb2018", TRAINED) / f"{TRAINER}__{PLANS}__{CANVASES[side]}"


def exported_model(work: Path, side: int) -> Path:
    """Return the folder of the exported model on a canvas."""
    return work / f"onnx_{side}"


def calibration_files(work: Path) -> list[Path]:
    """Return the images that the model was trained with."""
    return sorted((_raw(work, TRAINED) / "imagesTr").iterdir())


def tested_files(work: Path) -> list[Path]:
    """Return images that the model was not trained with."""
    return sorted((_raw(work, TESTED) / "imagesTr").iterdir())


def read_mask(image: Path) -> np.ndarray:
    """Return the mask (Y, X) of an image of `tested_files`."""
    from PIL import Image

    return np.asarray(Image.open(image.parents[1] / "labelsTr" / f"{image.name.removesuffix('_0000.png')}.png"))


def _raw(work: Path, dataset) -> Path:
    return work / "nnUNet_raw" / folder_name("dsb2018", dataset)


def _checkpoint(work: Path, side: int) -> Path:
    return trained_model(work, side) / "fold_0" / "checkpoint_final.pth"


def _put_on_canvas(work: Path, side: int, other: int) -> None:
    """Copy a trained model to the configuration of another canvas of the same plans."""
    checkpoint = torch.load(_checkpoint(work, side), map_location="cpu", weights_only=False)
    checkpoint["init_args"]["configuration"] = CANVASES[other]
    _checkpoint(work, other).parent.mkdir(parents=True, exist_ok=True)
    for name in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
        shutil.copy(trained_model(work, side) / name, trained_model(work, other))
    torch.save(checkpoint, _checkpoint(work, other))
