"""`hrmedseg pretrain`: from labelled data sets to an encoder file, without a teacher."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from nnunet_hrmedseg.encoders.card import environment, image_statistics, write_result
from nnunet_hrmedseg.encoders.labelled_images import (
    LabelledImages,
    LabelledItem,
    find_labelled_dataset,
    read_labelled,
    resized,
)
from nnunet_hrmedseg.encoders.loop import LoopSettings, begin_run, check_folder, run_loop
from nnunet_hrmedseg.encoders.supervised import SupervisedPretraining
from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.io.processes import Processes, processes
from nnunet_hrmedseg.teachers.loading import check_canvas
from nnunet_hrmedseg.weights.student import STUDENT_OPTIONS, Normalize, encoder_architecture, load_student_weights

__all__ = ["pretrain"]

STATISTICS_IMAGES = 8  # of each data set, from which mean and deviation are taken
EPOCHS = 20  # the learning rate and the log are counted in parts of the run
"""A run is cut into this many epochs; between them the losses are drawn."""


def pretrain(args: argparse.Namespace) -> int:
    """Run the command with the arguments of `pretraining.arguments.add_pretrain_arguments`.

    Raises:
        HRMedSegError: whatever the user can mend.
    """
    with processes(args.device) as group:
        return _pretrain(args, group)


def _pretrain(args: argparse.Namespace, group: Processes) -> int:
    folder, canvas = Path(args.output), check_canvas(tuple(args.canvas))
    if group.first:
        check_folder(folder)
    zoom = tuple(args.zoom)
    if zoom[0] > zoom[1]:
        raise HRMedSegError(f"--zoom {zoom[0]:g} {zoom[1]:g}: the lower magnification comes first.")
    datasets = [find_labelled_dataset(source) for source in args.datasets]
    for dataset in datasets:
        group.log(f"{dataset.name}: {len(dataset.cases)} cases, {dataset.num_classes} classes with background")
        for sentence in dataset.skipped:
            group.log(sentence)
    architecture = encoder_architecture(**{name: getattr(args, name) for name in STUDENT_OPTIONS})
    torch.manual_seed(args.seed)
    try:
        module = SupervisedPretraining(architecture, datasets, drop_path=args.drop_path).to(group.device)
    except ValueError as error:
        raise HRMedSegError(f"No student can be built: {error}.") from error

    step_images = args.batch_size * group.count
    steps_per_epoch = max(1, round(args.image_steps / step_images / EPOCHS))
    normalize = Normalize("zscore")
    started_from = load_student_weights(module.network, args.start, architecture, normalize) if args.start else None
    stream = LabelledImages(
        datasets,
        canvas,
        normalize,
        zoom=zoom,
        items=EPOCHS * steps_per_epoch * step_images,
        step_items=step_images,
        seed=args.seed,
    )
    settings = LoopSettings(
        epochs=EPOCHS,
        steps_per_epoch=steps_per_epoch,
        images_per_step=step_images,
        learning_rate=args.lr,
        decay=None,
        amp=args.amp,
        seed=args.seed,
    )

    def batches(epoch: int, first_step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        first = (epoch * steps_per_epoch + first_step) * step_images + group.rank
        last = (epoch + 1) * steps_per_epoch * step_images
        loader = DataLoader(
            stream,
            sampler=range(first, last, group.count),
            batch_size=args.batch_size,
            num_workers=args.workers,
            collate_fn=_collate,
            generator=torch.Generator(),  # a loader draws a number; not from where stochastic depth draws
        )
        try:
            for numbers, images, labels in loader:
                yield numbers.to(group.device), images.to(group.device), labels.to(group.device)
        except HRMedSegError as error:  # a loader puts the stack of its worker before the sentence
            sentence = str(error).rpartition("HRMedSegError: ")[2].strip()
            raise HRMedSegError(sentence) from error.with_traceback(None)  # which would keep the workers alive

    recipe = {
        "objective": "Dice + focal loss of the labels; own class queries for each data set, the decoder is thrown away",
        "canvas": list(canvas),
        "image_steps": EPOCHS * steps_per_epoch * step_images,
        "batch_size": step_images,
        "optimizer": "Adam",
        "learning_rate": args.lr,
        "learning_rate_schedule": "polynomial",
        "augmentation": "nnU-Net's, canvas x 0.75 to 1.25",
        "zoom": list(zoom),
        "drop_path": args.drop_path,
        "seed": args.seed,
        "started_from": started_from and started_from.sha256,
    }
    sources = {dataset.name: len(dataset.cases) for dataset in datasets}
    identity = {"command": "pretrain", "datasets": sources, "architecture": architecture, **recipe}
    begin_run(folder, identity, group, overwrite=args.overwrite)
    history = run_loop(module, batches, settings, folder, group, log=group.log)
    if group.first:
        shown = [
            resized(*read_labelled(dataset, case), canvas)[0]
            for dataset in datasets
            for case in dataset.cases[:: max(1, len(dataset.cases) // STATISTICS_IMAGES)][:STATISTICS_IMAGES]
        ]
        card = {
            "name": args.name or "supervised on " + ", ".join(sources),
            "made_by": "hrmedseg pretrain",
            "architecture": architecture,
            "normalization": normalize.card() | image_statistics(shown),
            "teacher": None,
            "data": {"sources": sources, "training_images": sum(sources.values())},
            "licences": {"data": args.data_licence},
            "recipe": recipe,
            "losses": {"training": history.last("loss")},
            **environment(group),
        }
        write_result(folder, module.network.state_dict(), card)
    return 0


def _collate(items: list[LabelledItem]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        torch.tensor([item.dataset for item in items]),
        torch.stack([item.image for item in items]),
        torch.stack([item.label for item in items]),
    )
