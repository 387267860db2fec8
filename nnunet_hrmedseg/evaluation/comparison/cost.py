"""Cost of models: size and memory are counted, epochs are read from logs, and predictions are timed here, in turns.

Each figure is labeled with its origin, because not all are from the same machine.
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

from nnunet_hrmedseg.architectures.counting import multiply_accumulates, parameters
from nnunet_hrmedseg.evaluation.benchmark.memory import saved_activation_bytes_fake
from nnunet_hrmedseg.evaluation.benchmark.networks import hrmedseg_trainable, nnunet_trainable
from nnunet_hrmedseg.evaluation.comparison.budget import BUDGET_FILE
from nnunet_hrmedseg.io.checkpoints import check_model_folder, find_checkpoint
from nnunet_hrmedseg.io.files import read_json
from nnunet_hrmedseg.io.stored_images import check_format
from nnunet_hrmedseg.nnunet_versions import build_network, find_trainer
from nnunet_hrmedseg.trainers.base import BaseTrainer

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
    """Cost of one trained model. None stands for an unknown figure.

    Attributes:
        patch_size: in pixels or voxels.
        batch_size: of the training.
        parameters: number of weights.
        multiply_accumulates: of one forward pass of one patch.
        training_bytes: saved for the backward pass of one patch, in float32.
        epoch_seconds: median.
        epochs: number of epochs in the logs.
        training_seconds: of a training by `--train`, whose epochs differ in length.
        iterations: of such a training.
        predict_seconds: median for an image, from preprocessing to a segmentation of the image's size.
        predicted_images: number of timed images.
    """

    patch_size: list[int]
    batch_size: int
    parameters: int
    multiply_accumulates: int
    training_bytes: int
    epoch_seconds: float | None = None
    epochs: int = 0
    training_seconds: float | None = None
    iterations: int | None = None
    predict_seconds: float | None = None
    predicted_images: int = 0


def costs(
    models: dict[str, tuple[Path, str]], images: Sequence[list[Path]], device: torch.device, notes: list[str]
) -> dict[str, Cost | str]:
    """Return the cost of each trained model, or a sentence that states why it is unknown.

    Args:
        models: name -> (model folder, a trained fold).
        images: files (one per channel) of a few raw cases, which all models predict in turns.
        device: to predict on.
        notes: gets a sentence for each measurement that failed.
    """
    found: dict[str, Cost | str] = {}
    predictors: dict[str, nnUNetPredictor] = {}
    for name, (folder, fold) in models.items():
        try:
            predictor = load(folder, fold, device)
            cost = count(predictor)
        except Exception as error:  # foreign trainers and old checkpoints raise anything; the report is still written
            found[name] = f"{type(error).__name__}: {error}"
            continue
        cost.epoch_seconds, cost.epochs = epochs_of_logs(folder / f"fold_{fold}")
        cost.training_seconds, cost.iterations = length_of_training(folder / f"fold_{fold}")
        found[name], predictors[name] = cost, predictor
    seconds: dict[str, list[float]] = {name: [] for name in predictors}
    # the first prediction fills caches and is not counted
    for files in [*images[:1], *images]:
        for name, predictor in predictors.items():
            try:
                seconds[name].append(predict_seconds(predictor, files))
            except Exception as error:
                note = f"{name} was not timed on {files[0].name} ({type(error).__name__}: {error})."
                notes += [note] if note not in notes else []
    for name, times in seconds.items():
        timed, measured = found[name], times[1:]
        if isinstance(timed, Cost) and measured:
            timed.predict_seconds, timed.predicted_images = statistics.median(measured), len(measured)
    return found


def load(folder: Path, fold: str, device: torch.device) -> nnUNetPredictor:
    """Return the model as nnUNetv2_predict loads it, with default mirroring and overlap of tiles."""
    checkpoint = find_checkpoint(folder, fold)
    check_model_folder(folder, checkpoint)
    with redirect_stdout(StringIO()):  # on a CPU it prints that there is no GPU
        predictor = nnUNetPredictor(device=device, perform_everything_on_device=device.type == "cuda", allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), (int(fold),), checkpoint.name)
    return predictor


def count(predictor: nnUNetPredictor) -> Cost:
    """Count what follows from the plan. The predictor must not have predicted yet: its network is on the CPU."""
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    channels = determine_num_input_channels(plans, configuration, predictor.dataset_json)
    patch = [int(side) for side in configuration.patch_size]
    shape = (1, channels, *patch)
    trainer = find_trainer(predictor.trainer_name)
    classes = predictor.label_manager.num_segmentation_heads
    deep_supervision = not issubclass(trainer, BaseTrainer)
    network = build_network(trainer, plans, configuration, channels, classes, deep_supervision)
    recompute = configuration.network_arch_init_kwargs.get("recompute", False)
    trainable = nnunet_trainable(network) if deep_supervision else hrmedseg_trainable(trainer, network, recompute)
    return Cost(
        patch_size=patch,
        batch_size=int(configuration.batch_size),
        parameters=parameters(predictor.network)["total"],
        multiply_accumulates=multiply_accumulates(predictor.network, shape)["total"],
        training_bytes=saved_activation_bytes_fake(trainable, [shape])[0],
    )


def epochs_of_logs(fold_folder: Path) -> tuple[float | None, int]:
    """Return the median seconds of an epoch and the number of epochs in nnU-Net's training logs of a fold."""
    logs = sorted(fold_folder.glob("training_log_*.txt"))
    seconds = [
        float(time)
        for log in logs
        for time in re.findall(r"Epoch time: ([0-9]+[.]?[0-9]*) s", log.read_text(errors="replace"))
    ]
    return (statistics.median(seconds) if seconds else None), len(seconds)


def length_of_training(fold_folder: Path) -> tuple[float | None, int | None]:
    """Return seconds and iterations of a training within a budget, or None for both."""
    try:
        record = read_json(fold_folder / BUDGET_FILE)
        return float(record["training_seconds"]), int(record["iterations"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None, None


def predict_seconds(predictor: nnUNetPredictor, files: list[Path]) -> float:
    """Return the seconds from an image in memory to its segmentation at the image's size."""
    reader = predictor.plans_manager.image_reader_writer_class()
    for file in files:
        check_format(str(file))
    image, properties = reader.read_images([str(file) for file in files])
    cache_tile_weights(predictor)
    start = time.perf_counter()
    predictor.predict_single_npy_array(image, properties)
    return time.perf_counter() - start


def cache_tile_weights(predictor: nnUNetPredictor) -> None:
    """Compute the weights of a tile, which nnUNetv2_predict does once, at the first image.

    nnU-Net caches the weights of two tile sizes. If models with three sizes take turns, each would evict another's
    weights and the time of the next model would include them: 0.9 s for a canvas of 1024 x 1024. Arguments and their
    order equal the predictor's, as they are the key of the cache.
    """
    if predictor.use_gaussian:
        device = predictor.device if predictor.perform_everything_on_device else torch.device("cpu")
        patch = tuple(predictor.configuration_manager.patch_size)
        compute_gaussian(patch, sigma_scale=1.0 / 8, value_scaling_factor=10, device=device)
