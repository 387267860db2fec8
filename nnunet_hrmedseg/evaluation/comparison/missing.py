"""Train the missing folds of models, with the same splits and the same budget."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nnunet_hrmedseg.errors import DataError, PlanError
from nnunet_hrmedseg.evaluation.comparison.budget import Budget
from nnunet_hrmedseg.evaluation.comparison.inputs import TrainedModels
from nnunet_hrmedseg.evaluation.comparison.train import is_validated, train_fold
from nnunet_hrmedseg.io.files import read_json
from nnunet_hrmedseg.nnunet_versions import full_dataset_name, required_nnunet_folder

__all__ = ["TrainingOptions", "train_missing"]

FOLDS = 5  # of nnU-Net's own splits


@dataclass(frozen=True)
class TrainingOptions:
    """How missing folds are trained.

    Attributes:
        epochs: length of each training in nnU-Net's epochs of 250 iterations, or
        minutes: its length in minutes, without validation. Give one of the two.
        npz: save the probabilities of the validation cases, which ensembles need.
    """

    epochs: int | None = None
    minutes: float | None = None
    npz: bool = False


def train_missing(models: TrainedModels, training: TrainingOptions, device: str) -> None:
    """Train and validate every selected fold that has no validation yet, one after the other.

    Args:
        models: their trainers must be named. Default plans are nnUNetPlans, the default configuration is 2d, and
            default folds are those of splits_final.json.
        training: length of each training.
        device: "cuda", "mps" or "cpu".

    Raises:
        PlanError: no trainers, or not exactly one of epochs and minutes.
        DataError: splits_final.json cannot be read.
        SetupError: a training failed.
    """
    if not models.trainers:
        raise PlanError("--train: name the trainers, such as -tr nnUNetTrainer nnUNetTrainerHRMedSeg.")
    budget = Budget(training.epochs, training.minutes)
    preprocessed, results = map(Path, map(required_nnunet_folder, ("nnUNet_preprocessed", "nnUNet_results")))
    dataset = full_dataset_name(models.dataset)
    preprocessed, results = preprocessed / dataset, results / dataset
    missing = [
        (trainer, plans, configuration, fold)
        for trainer in models.trainers
        for plans in models.plans or ["nnUNetPlans"]
        for configuration in models.configurations or ["2d"]
        for fold in models.folds or folds_of_splits(preprocessed)
        if not is_validated(
            results / f"{trainer}__{plans}__{configuration}" / f"fold_{fold}" / "validation", training.npz
        )
    ]
    if missing:
        print(f"Training {len(missing)} missing folds on {device}, {budget} each, with validation.", flush=True)
    for number, (trainer, plans, configuration, fold) in enumerate(missing, start=1):
        print(f"\n{number} of {len(missing)}: {trainer}, {plans}, {configuration}, fold {fold}", flush=True)
        train_fold(
            dataset,
            configuration,
            fold,
            trainer,
            plans,
            epochs=training.epochs,
            minutes=training.minutes,
            device=device,
            npz=training.npz,
        )


def folds_of_splits(preprocessed: Path) -> list[str]:
    """Return the folds of splits_final.json. Without that file, nnU-Net makes five when it first trains."""
    file = preprocessed / "splits_final.json"
    if not file.is_file():
        return [str(fold) for fold in range(FOLDS)]
    try:
        splits = read_json(file)
        if not isinstance(splits, list):
            raise ValueError(f"it holds a {type(splits).__name__}, not a list of folds")
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}. Remove it: nnU-Net will write a new one.") from error
    return [str(fold) for fold in range(len(splits))]
