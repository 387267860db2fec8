"""nnU-Net trainers that record a learning curve, for `benchmarks/full_training.py` and nnU-Net's variable for trainers.

The environment variable FULL_TRAINING_ROW is set to a JSON file with the row's settings. Each finished epoch adds a
line to curve.jsonl in the fold's folder: image-steps, processor seconds of this process and its workers, and every few
epochs the Dice of the whole validation images without mirroring, for the weights and for their moving average.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from comparison_networks import nnUNetTrainerMobileNetUNet, nnUNetTrainerSegFormerB0  # in this folder
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_hrmedseg.evaluation.comparison import budget
from nnunet_hrmedseg.io.files import write_atomically
from nnunet_hrmedseg.trainers.hrmedseg import nnUNetTrainerHERSeg, nnUNetTrainerHRMedSeg
from nnunet_hrmedseg.trainers.paper import nnUNetTrainerHRMedSegPaper
from nnunet_hrmedseg.trainers.weight_average import WeightAverage

ROW: dict[str, Any] = json.loads(Path(os.environ["FULL_TRAINING_ROW"]).read_text())
CURVE = "curve.jsonl"
EPOCH_PIXELS = 360 * 512 * 512  # about two minutes of one core, which a kill can lose
MIN_EPOCHS = 20
LATEST, PREVIOUS, AVERAGED = "checkpoint_latest.pth", "checkpoint_previous.pth", "averaged.pth"


class Clock:
    """Processor seconds of this process and its workers, excluding those spent on points of the curve."""

    left_out = 0.0

    @staticmethod
    def tree() -> float:
        this = psutil.Process()
        seconds = 0.0
        for process in (this, *this.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            seconds += times.user + times.system + times.children_user + times.children_system
        return seconds

    def __call__(self) -> float:
        return self.tree() - self.left_out


clock = Clock()
budget.monotonic = clock  # budgets in processor seconds do not depend on the load of the machine


class Measured(nnUNetTrainer):
    """A mixin for trainer classes, without `__init__`, because nnU-Net records arguments by its signature."""

    averaged: WeightAverage | None = None

    def initialize(self) -> None:
        torch.set_num_threads(ROW["threads"])
        torch.manual_seed(ROW["seed"])
        np.random.seed(ROW["seed"])
        if ROW["image_steps"]:
            pixels = ROW["image_steps"] * np.prod(self.configuration_manager.patch_size)
            self.num_epochs = max(MIN_EPOCHS, round(pixels / EPOCH_PIXELS))
            per_epoch = ROW["image_steps"] / self.num_epochs / self.configuration_manager.batch_size
            self.num_iterations_per_epoch = max(1, round(per_epoch))
        self.num_val_iterations_per_epoch = 1  # estimate from patches, which is not used here
        self.save_every = 1
        self.encoder_lr = ROW["settings"].get("encoder_lr")
        if "oversample_foreground_percent" in ROW["settings"]:
            self.oversample_foreground_percent = ROW["settings"]["oversample_foreground_percent"]
        self.initial_lr = ROW["settings"].get("initial_lr", self.initial_lr)
        super().initialize()
        decay = ROW["settings"].get("ema_decay")
        if decay:
            self.averaged = WeightAverage(self.network, decay)

    def get_training_transforms(self, *args, **kwargs):
        if ROW["settings"].get("augmentation") == "flips":
            return nnUNetTrainerHRMedSegPaper.get_training_transforms(self, *args, **kwargs)  # type: ignore[arg-type]
        return super().get_training_transforms(*args, **kwargs)

    def on_train_start(self) -> None:
        super().on_train_start()
        self.curve_file = Path(self.output_folder, CURVE)
        lines = self.curve_file.read_text().splitlines() if self.curve_file.is_file() else []
        self.curve = [json.loads(line) for line in lines][: self.current_epoch]
        self.seconds_before = self.curve[-1]["processor_seconds"] if self.curve else 0.0
        self.images_before = self.curve[-1]["image_steps"] if self.curve else 0
        self.images = 0
        averaged = Path(self.output_folder, AVERAGED)
        if self.averaged is not None and self.current_epoch and averaged.is_file():
            saved = torch.load(averaged, weights_only=True)
            self.averaged.average, self.averaged.updates = saved["average"], saved["updates"]
        self.began = clock()

    def train_step(self, batch: dict) -> dict:
        result = super().train_step(batch)
        self.images += len(batch["data"])
        if self.averaged is not None:
            self.averaged.update()
        return result

    def on_epoch_end(self) -> None:
        # before the checkpoint, so that a kill loses the point together with its epoch
        done = self.current_epoch + 1
        point: dict[str, Any] = {
            "epoch": done,
            "image_steps": self.images_before + self.images,
            "processor_seconds": round(self.seconds_before + clock() - self.began, 1),
        }
        if done % max(1, self.num_epochs // ROW["points"]) == 0 or done >= self.num_epochs:
            before = clock.tree()
            point["dice"] = self.validation_dice()
            if self.averaged is not None:
                with self.averaged.applied():
                    point["dice_averaged"] = self.validation_dice()
            clock.left_out += clock.tree() - before
        self.curve.append(point)
        text = "".join(json.dumps(line) + "\n" for line in self.curve)
        write_atomically(self.curve_file, text.encode())
        super().on_epoch_end()

    def validation_dice(self) -> dict[str, float]:
        """Return the Dice of each class for whole validation images, averaged over cases."""
        axes, self.inference_allowed_mirroring_axes = self.inference_allowed_mirroring_axes, None
        self.perform_actual_validation()
        self.inference_allowed_mirroring_axes = axes
        summary = json.loads(Path(self.output_folder, "validation", "summary.json").read_text())
        return {label: round(mean["Dice"], 4) for label, mean in summary["mean"].items()}

    def save_checkpoint(self, filename: str) -> None:
        file = Path(filename)
        if file.name == LATEST and file.is_file():
            os.replace(file, file.with_name(PREVIOUS))
        super().save_checkpoint(filename)
        if self.averaged is not None and file.name in (LATEST, "checkpoint_final.pth"):
            partial = file.with_name(AVERAGED + ".incomplete")
            torch.save({"average": self.averaged.average, "updates": self.averaged.updates}, partial)
            os.replace(partial, file.with_name(AVERAGED))

    def on_train_end(self) -> None:
        super().on_train_end()
        if self.averaged is not None:
            final = Path(self.output_folder, "checkpoint_final.pth")
            checkpoint = torch.load(final, weights_only=False)
            checkpoint["network_weights"] = self.averaged.average
            torch.save(checkpoint, final.with_name("checkpoint_averaged.pth"))


def within_budget(trainer_class: type[nnUNetTrainer]) -> type[nnUNetTrainer]:
    seconds = ROW["processor_seconds"]
    return budget.with_budget(trainer_class, minutes=seconds / 60) if seconds else trainer_class


class nnUNetTrainerMeasured(Measured, within_budget(nnUNetTrainer)):  # type: ignore[misc]
    """Stock nnU-Net."""


class nnUNetTrainerMeasuredHRMedSeg(Measured, within_budget(nnUNetTrainerHRMedSeg)):  # type: ignore[misc]
    """HRMedSeg, started from HRMEDSEG_ENCODER_WEIGHTS."""


class nnUNetTrainerMeasuredHRMedSegPaper(Measured, nnUNetTrainerHRMedSegPaper):
    """HRMedSeg with the recipe of the paper, started from HRMEDSEG_ENCODER_WEIGHTS."""


class nnUNetTrainerMeasuredHERSeg(Measured, nnUNetTrainerHERSeg):
    """HER-Seg, started from HRMEDSEG_ENCODER_WEIGHTS."""


class nnUNetTrainerMeasuredSegFormerB0(Measured, nnUNetTrainerSegFormerB0):
    """SegFormer-B0 in HRMedSeg's trainer."""


class nnUNetTrainerMeasuredMobileNetUNet(Measured, nnUNetTrainerMobileNetUNet):
    """U-Net with a MobileNet encoder in HRMedSeg's trainer."""
