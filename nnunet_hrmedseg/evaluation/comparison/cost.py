"""What a model costs: size and memory counted, epochs read from its logs, prediction measured here, in turns.

Every figure carries how it was come by, because they are not all of the same machine.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import nn

from nnunet_hrmedseg.architectures.counting import multiply_accumulates, parameters
from nnunet_hrmedseg.evaluation.benchmark.memory import saved_activation_bytes_fake
from nnunet_hrmedseg.evaluation.benchmark.networks import Trainable, nnunet_loss, nnunet_trainable
from nnunet_hrmedseg.evaluation.comparison.budget import BUDGET_FILE
from nnunet_hrmedseg.io.checkpoints import check_model_folder, find_checkpoint
from nnunet_hrmedseg.io.files import read_json
from nnunet_hrmedseg.io.stored_images import check_format
from nnunet_hrmedseg.nnunet_versions import build_network, find_trainer
from nnunet_hrmedseg.trainers.base import BaseTrainer
from nnunet_hrmedseg.trainers.trainer import nnUNetTrainerHRMedSeg

__all__ = [
    "COUNTED",
    "Cost",
    "FROM_LOGS",
    "MEASURED",
    "costs",
]

COUNTED, FROM_LOGS, MEASURED = "counted", "read from its logs", "measured here"


@dataclass
class Cost:
    """Of one trained model; None where it cannot be known, with the reason in `notes`."""

    patch_size: list[int]
    batch_size: int
    parameters: int
    multiply_accumulates: int  # one forward pass of one patch
    training_bytes: int  # kept for the backward pass of one patch, float32
    epoch_seconds: float | None = None  # median
    epochs: int = 0
    training_seconds: float | None = None  # of a training by `--train`, in which epochs are not all of one length
    iterations: int | None = None
    predict_seconds: float | None = None  # per image: preprocessing, network, back to the image's size; median
    predicted_images: int = 0


def costs(
    models: dict[str, tuple[Path, str]], images: Sequence[list[Path]], device: torch.device, notes: list[str]
) -> dict[str, Cost | str]:
    """Costs of trained models: name -> (model folder, a fold that is trained). What cannot be known is a sentence.

    images: the files (one per channel) of a few raw cases, which every model predicts, in turns.
    notes: grows by what could not be measured, in words.
    """
    found: dict[str, Cost | str] = {}
    predictors: dict[str, nnUNetPredictor] = {}
    for name, (folder, fold) in models.items():
        try:
            predictor = load(folder, fold, device)
            cost = count(predictor)
        except Exception as error:  # whatever a foreign trainer or an old checkpoint raises: the report still comes
            found[name] = f"{type(error).__name__}: {error}"
            continue
        cost.epoch_seconds, cost.epochs = epochs_of_logs(folder / f"fold_{fold}")
        cost.training_seconds, cost.iterations = length_of_training(folder / f"fold_{fold}")
        found[name], predictors[name] = cost, predictor
    seconds: dict[str, list[float]] = {name: [] for name in predictors}
    # a first image for the caches, which is not counted
    for files in [*images[:1], *images]:
        for name, predictor in predictors.items():
            try:
                seconds[name].append(predict_seconds(predictor, files))
            except Exception as error:
                said = f"{name} was not timed on {files[0].name} ({type(error).__name__}: {error})."
                notes += [said] if said not in notes else []
    for name, of_model in seconds.items():
        timed, measured = found[name], of_model[1:]
        if isinstance(timed, Cost) and measured:
            timed.predict_seconds, timed.predicted_images = statistics.median(measured), len(measured)
    return found


def load(folder: Path, fold: str, device: torch.device) -> nnUNetPredictor:
    """The model as nnUNetv2_predict has it: mirroring and overlapping tiles as by default."""
    checkpoint = find_checkpoint(folder, fold)
    check_model_folder(folder, checkpoint)
    with redirect_stdout(StringIO()):  # it says on every CPU that this is no GPU
        predictor = nnUNetPredictor(device=device, perform_everything_on_device=device.type == "cuda", allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), (int(fold),), checkpoint.name)
    return predictor


def count(predictor: nnUNetPredictor) -> Cost:
    """What follows from the plan alone. The predictor has not predicted yet: its network is still on the CPU."""
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    channels = determine_num_input_channels(plans, configuration, predictor.dataset_json)
    patch = [int(side) for side in configuration.patch_size]
    shape = (1, channels, *patch)
    trainer = find_trainer(predictor.trainer_name)
    classes = predictor.label_manager.num_segmentation_heads
    ours = issubclass(trainer, BaseTrainer)
    network = build_network(trainer, plans, configuration, channels, classes, not ours)
    recompute = configuration.network_arch_init_kwargs.get("recompute", False)
    trainable = hrmedseg_trainable(trainer, network, recompute) if ours else nnunet_trainable(network)
    return Cost(
        patch_size=patch,
        batch_size=int(configuration.batch_size),
        parameters=parameters(predictor.network)["total"],
        multiply_accumulates=multiply_accumulates(predictor.network, shape)["total"],
        training_bytes=saved_activation_bytes_fake(trainable, [shape])[0],
    )


def hrmedseg_trainable(trainer: type[BaseTrainer], network: nn.Module, recompute: bool) -> Trainable:
    """The network with the loss that its trainer trains it with, where its plan says to `recompute` or not."""
    loss = nnunet_loss()
    if issubclass(trainer, nnUNetTrainerHRMedSeg):
        network.upsample_in_training = False  # type: ignore[assignment]  # as the trainer sets it
        loss = trainer.build_loss(regions=False, frugal=recompute)
    return Trainable(network, loss, torch.optim.Adam(network.parameters()))


def epochs_of_logs(fold_folder: Path) -> tuple[float | None, int]:
    """Median seconds of an epoch, and the number of epochs, in nnU-Net's training logs of a fold."""
    logs = sorted(fold_folder.glob("training_log_*.txt"))
    seconds = [
        float(time)
        for log in logs
        for time in re.findall(r"Epoch time: ([0-9]+[.]?[0-9]*) s", log.read_text(errors="replace"))
    ]
    return (statistics.median(seconds) if seconds else None), len(seconds)


def length_of_training(fold_folder: Path) -> tuple[float | None, int | None]:
    """Seconds and iterations that a training within a budget took, or None for both."""
    try:
        record = read_json(fold_folder / BUDGET_FILE)
        return float(record["training_seconds"]), int(record["iterations"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None, None


def predict_seconds(predictor: nnUNetPredictor, files: list[Path]) -> float:
    """Seconds from an image in memory to its segmentation at the image's own size."""
    reader = predictor.plans_manager.image_reader_writer_class()
    for file in files:
        check_format(str(file))
    image, properties = reader.read_images([str(file) for file in files])
    cache_tile_weights(predictor)
    start = time.perf_counter()
    predictor.predict_single_npy_array(image, properties)
    return time.perf_counter() - start


def cache_tile_weights(predictor: nnUNetPredictor) -> None:
    """As they are after the first image of nnUNetv2_predict, which pays for them once.

    nnU-Net keeps the weights of two tile sizes. Where models of three take turns, each would push another's out, and
    whichever comes next would be charged with them: 0.9 s for a canvas of 1024 x 1024. Arguments and their order are
    the predictor's, as they are the key.
    """
    if predictor.use_gaussian:
        device = predictor.device if predictor.perform_everything_on_device else torch.device("cpu")
        patch = tuple(predictor.configuration_manager.patch_size)
        compute_gaussian(patch, sigma_scale=1.0 / 8, value_scaling_factor=10, device=device)
