"""Pre-train an encoder: from labeled datasets to an encoder file, without a teacher."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from nnunet_hrmedseg.encoders.card import environment, image_statistics, write_result
from nnunet_hrmedseg.encoders.history import History
from nnunet_hrmedseg.encoders.labeled_images import (
    LabeledDataset,
    LabeledImages,
    LabeledItem,
    find_labeled_dataset,
    read_labeled,
    resized,
)
from nnunet_hrmedseg.encoders.loop import LoopSettings, run_loop
from nnunet_hrmedseg.encoders.options import EncoderResult, PretrainingOptions, RunOptions, StudentOptions
from nnunet_hrmedseg.encoders.run_folder import check_folder, open_run
from nnunet_hrmedseg.encoders.supervised import SupervisedPretraining
from nnunet_hrmedseg.errors import HRMedSegError, PlanError
from nnunet_hrmedseg.io.processes import Processes, processes
from nnunet_hrmedseg.teachers.loading import check_canvas
from nnunet_hrmedseg.weights.student import Normalize, load_student_weights

__all__ = ["pretrain"]

STATISTICS_IMAGES = 8  # of each dataset, from which mean and standard deviation are computed
EPOCHS = 20
"""A run is divided into this many epochs; the losses are drawn between them."""


def pretrain(
    *,
    datasets: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    student: StudentOptions | None = None,
    recipe: PretrainingOptions | None = None,
    run: RunOptions | None = None,
) -> EncoderResult:
    """Train the small encoder of HRMedSeg on labeled 2D datasets, several at once.

    A run that was stopped continues when the function is called again with the same arguments. Under torchrun, all
    processes train together, and the first one writes the files.

    Args:
        datasets: Labeled 2D nnU-Net raw datasets: names or numbers in nnUNet_raw, or folders.
        output: Folder for encoder, card, losses and checkpoint: new, empty, or that of the same run.
        student: The network that is trained.
        recipe: Length, batch size, learning rate.
        run: Device, seed, name on the card.

    Returns:
        Path of the encoder file, loss and number of images.

    Raises:
        CheckpointError: The encoder to start from is missing, damaged, or does not fit.
        DataError: A dataset or one of its cases cannot be used.
        PlanError: Options that cannot be combined, or a loss that is not finite.
        SetupError: The output folder cannot be used, or the device is missing.

    Examples:
        ```python
        import json
        from pathlib import Path

        import numpy as np
        from PIL import Image

        from nnunet_hrmedseg import PretrainingOptions, RunOptions, StudentOptions, pretrain

        dataset = Path("nnUNet_raw/Dataset012_Squares")
        for folder in ("imagesTr", "labelsTr"):
            (dataset / folder).mkdir(parents=True)
        label = np.zeros((64, 64), np.uint8)
        label[20:40, 20:40] = 1
        for case in ("a", "b"):
            image = np.random.default_rng(0).integers(0, 100, (64, 64, 3), np.uint8) + 100 * label[..., None]
            Image.fromarray(image).save(dataset / "imagesTr" / f"{case}_0000.png")
            Image.fromarray(label).save(dataset / "labelsTr" / f"{case}.png")
        description = {
            "channel_names": {"0": "R", "1": "G", "2": "B"},
            "labels": {"background": 0, "square": 1},
            "numTraining": 2,
            "file_ending": ".png",
        }
        (dataset / "dataset.json").write_text(json.dumps(description))
        result = pretrain(
            datasets=["Dataset012_Squares"],
            output="encoder",
            student=StudentOptions(canvas=(64, 64), embed_dim=24, depth=1, decoder_dim=16),
            recipe=PretrainingOptions(image_steps=20, batch_size=1),
            run=RunOptions(device="cpu", workers=0),
        )
        assert result.path.is_file() and result.training_images == 2
        ```
    """
    run = run or RunOptions()
    with processes(run.device) as group:
        pretraining = _PretrainingRun(
            output=Path(output),
            student=student or StudentOptions(),
            recipe=recipe or PretrainingOptions(),
            run=run,
            group=group,
        )
        pretraining.load(datasets)
        pretraining.prepare_images()
        with open_run(pretraining.folder, pretraining.identity(), group, overwrite=run.overwrite):
            return pretraining.finish(pretraining.train())


class _PretrainingRun:
    """One pre-training; the methods are called in the order in which they are defined."""

    def __init__(
        self,
        *,
        output: Path,
        student: StudentOptions,
        recipe: PretrainingOptions,
        run: RunOptions,
        group: Processes,
    ) -> None:
        self.folder, self.student_options, self.recipe, self.run, self.group = output, student, recipe, run, group
        self.canvas = check_canvas(student.canvas)
        self.images_per_step = recipe.batch_size * group.count
        self.steps_per_epoch = max(1, round(recipe.image_steps / self.images_per_step / EPOCHS))
        self.normalize = Normalize("zscore")
        if group.first:
            check_folder(output)

    def load(self, sources: Sequence[str | os.PathLike]) -> None:
        """Find the datasets and build the network."""
        self.datasets = [find_labeled_dataset(os.fspath(source)) for source in sources]
        for dataset in self.datasets:
            self.group.log(f"{dataset.name}: {len(dataset.cases)} cases, {dataset.num_classes} classes with background")
            for sentence in dataset.skipped:
                self.group.log(sentence)
        self.architecture = self.student_options.architecture()
        torch.manual_seed(self.run.seed)
        try:
            module = SupervisedPretraining(self.architecture, self.datasets, drop_path=self.student_options.drop_path)
        except ValueError as error:
            raise PlanError(f"No student can be built: {error}.") from error
        self.module = module.to(self.group.device)
        start, self.started_from = self.student_options.start, None
        if start:
            file = load_student_weights(module.network, os.fspath(start), self.architecture, self.normalize)
            self.started_from = file.sha256

    def prepare_images(self) -> None:
        """Define the images of the whole training."""
        self.stream = LabeledImages(
            self.datasets,
            self.canvas,
            self.normalize,
            zoom=(self.recipe.zoom[0], self.recipe.zoom[1]),
            items=EPOCHS * self.steps_per_epoch * self.images_per_step,
            step_items=self.images_per_step,
            seed=self.run.seed,
        )

    def train(self) -> History:
        """Train the network, or continue its training."""
        settings = LoopSettings(
            epochs=EPOCHS,
            steps_per_epoch=self.steps_per_epoch,
            images_per_step=self.images_per_step,
            learning_rate=self.recipe.learning_rate,
            decay=None,
            amp=self.run.amp,
            seed=self.run.seed,
        )
        return run_loop(self.module, self._batches, settings, self.folder, self.group, log=self.group.log)

    def _batches(self, epoch: int, first_step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield the batches of this process: numbers of the datasets (B,), images, labels."""
        first = (epoch * self.steps_per_epoch + first_step) * self.images_per_step + self.group.rank
        last = (epoch + 1) * self.steps_per_epoch * self.images_per_step
        loader = DataLoader(
            self.stream,
            sampler=range(first, last, self.group.count),
            batch_size=self.recipe.batch_size,
            num_workers=self.run.workers,
            collate_fn=_collate,
            generator=torch.Generator(),  # a loader draws a number, which must not come from torch's own generator
        )
        device = self.group.device
        try:
            for numbers, images, labels in loader:
                yield numbers.to(device), images.to(device), labels.to(device)
        except HRMedSegError as error:  # a loader puts the traceback of its worker before the message
            message = re.split(r"\w+\.errors\.\w+: ", str(error))[-1].strip()
            raise type(error)(message) from error.with_traceback(None)  # a traceback would keep the workers alive

    def finish(self, history: History) -> EncoderResult:
        """Write the encoder file and its card."""
        sources = self._sources()
        if self.group.first:
            card = {
                "name": self.run.name or "supervised on " + ", ".join(sources),
                "made_by": "hrmedseg pretrain",
                "architecture": self.architecture,
                "normalization": self.normalize.card() | image_statistics(_sample_images(self.datasets, self.canvas)),
                "teacher": None,
                "data": {"sources": sources, "training_images": sum(sources.values())},
                "licenses": {"data": self.run.data_license},
                "recipe": self._recipe_card(),
                "losses": {"training": history.last("loss")},
                **environment(self.group),
            }
            write_result(self.folder, self.module.network.state_dict(), card)
        return EncoderResult(
            path=self.folder / "encoder.safetensors",
            training_loss=history.last("loss"),
            validation_loss=None,
            training_images=sum(sources.values()),
        )

    def _sources(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for dataset in self.datasets:  # folders in different places may have the same name
            counts[dataset.name] += len(dataset.cases)
        return dict(counts)

    def identity(self) -> dict[str, Any]:
        """Return everything that must be the same for a run to be continued."""
        return {
            "command": "pretrain",
            "datasets": self._sources(),
            "architecture": self.architecture,
            **self._recipe_card(),
        }

    def _recipe_card(self) -> dict[str, Any]:
        """Return what the card says about the training."""
        return {
            "objective": "Dice + focal loss; separate class queries for each dataset; the decoder is discarded",
            "canvas": list(self.canvas),
            "image_steps": EPOCHS * self.steps_per_epoch * self.images_per_step,
            "batch_size": self.images_per_step,
            "optimizer": "Adam",
            "learning_rate": self.recipe.learning_rate,
            "learning_rate_schedule": "polynomial",
            "augmentation": "nnU-Net's, canvas x 0.75 to 1.25",
            "zoom": list(self.recipe.zoom),
            "drop_path": self.student_options.drop_path,
            "seed": self.run.seed,
            "started_from": self.started_from,
        }


def _sample_images(datasets: Sequence[LabeledDataset], canvas: tuple[int, int]) -> list[torch.Tensor]:
    """Return a few images of each dataset on the canvas, evenly spaced."""
    return [
        resized(*read_labeled(dataset, case), canvas)[0]
        for dataset in datasets
        for case in dataset.cases[:: max(1, len(dataset.cases) // STATISTICS_IMAGES)][:STATISTICS_IMAGES]
    ]


def _collate(items: list[LabeledItem]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        torch.tensor([item.dataset for item in items]),
        torch.stack([item.image for item in items]),
        torch.stack([item.label for item in items]),
    )
