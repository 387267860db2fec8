"""Teachers of encoder_initialization.py: a ResEnc nnU-Net trained on all datasets of an encoder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

try:
    from benchmarks.encoder_initialization_data import (
        DATASETS,
        ENCODERS,
        environment,
        folder_name,
        stock_plans,
        write_dataset_json,
    )
except ModuleNotFoundError:  # as a script
    from encoder_initialization_data import (  # type: ignore[import-not-found, no-redef]
        DATASETS,
        ENCODERS,
        environment,
        folder_name,
        stock_plans,
        write_dataset_json,
    )

__all__ = ["Teacher", "train_teacher"]

TEACHER_BATCH_SIZE = 4


@dataclass(frozen=True)
class Teacher:
    """A ResEnc M nnU-Net.

    Attributes:
        side: height and width of its images in pixels.
        width: factor on its numbers of channels.
        epochs: number of epochs.
        iterations: number of batches per epoch.
    """

    side: int = 256
    width: float = 0.5
    epochs: int = 10
    iterations: int = 60

    def dataset(self, encoder: str) -> str:
        number = 920 + 10 * (self.side // 256 - 1) + list(ENCODERS).index(encoder)
        return f"Dataset{number}_{encoder}"

    @property
    def plans_name(self) -> str:
        name = "nnUNetResEncUNetMPlans"
        if self == Teacher(self.side):
            return name
        return f"{name}_width{self.width:g}_{self.epochs}x{self.iterations}"

    def results(self, work: Path, encoder: str) -> Path:
        return work / "nnUNet_results" / self.dataset(encoder) / f"nnUNetTrainer__{self.plans_name}__2d"


def prepare_teacher(work: Path, encoder: str, settings: Teacher) -> None:
    """Write one dataset of all datasets of an encoder: RGB, in the size of the canvas, with all classes."""
    from PIL import Image

    raw = work / "nnUNet_raw" / settings.dataset(encoder)
    if (raw / "dataset.json").is_file():
        return
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True, exist_ok=True)
    size, labels, cases = (settings.side, settings.side), {"background": 0}, 0
    for name in ENCODERS[encoder]:
        source, first = work / "nnUNet_raw" / folder_name(name), len(labels) - 1
        shared = {label: labels[label] for label in DATASETS[name][1] if label in labels}  # two datasets have polyps
        labels.update({label: first + value for label, value in DATASETS[name][1].items() if label not in shared})
        values = np.array([labels[label] for label in DATASETS[name][1]], np.uint8)
        for file in sorted((source / "labelsTr").iterdir()):
            image = Image.open(source / "imagesTr" / f"{file.stem}_0000.png").convert("RGB")
            image.resize(size, Image.Resampling.BOX).save(raw / "imagesTr" / f"{name}_{file.stem}_0000.png")
            mask = Image.fromarray(values[np.array(Image.open(file))]).resize(size, Image.Resampling.NEAREST)
            mask.save(raw / "labelsTr" / f"{name}_{file.name}")
            cases += 1
    write_dataset_json(raw, labels, cases)


def train_teacher(work: Path, encoder: str, settings: Teacher) -> None:
    """Train a ResEnc M nnU-Net by nnU-Net's trainer. The default of half the width is for two CPU cores."""
    os.environ.update(environment(work))
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.set_num_threads(1)
    prepare_teacher(work, encoder, settings)
    options = ["-pl", "nnUNetPlannerResEncM", "-np", "1"]
    plans, description = stock_plans(work, settings.dataset(encoder), "nnUNetResEncUNetMPlans", *options)
    plans["plans_name"] = settings.plans_name
    configuration = plans["configurations"]["2d"]
    configuration.update(batch_size=TEACHER_BATCH_SIZE, patch_size=[settings.side, settings.side])
    network = configuration["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [int(features * settings.width) for features in network["features_per_stage"]]
    torch.manual_seed(0)
    np.random.seed(0)
    trainer = nnUNetTrainer(plans, "2d", 0, description, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch = settings.epochs, settings.iterations
    trainer.num_val_iterations_per_epoch = 10
    trainer.save_every = 1
    if (Path(trainer.output_folder) / "checkpoint_final.pth").is_file():
        return
    latest = Path(trainer.output_folder) / "checkpoint_latest.pth"
    if latest.is_file():
        trainer.load_checkpoint(str(latest))
    trainer.run_training()
