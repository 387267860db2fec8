"""`hrmedseg compare --train`: the folds that are missing, trained with the same splits and the same budget."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.evaluation.comparison.budget import Budget
from nnunet_hrmedseg.evaluation.comparison.train import is_validated, train_fold
from nnunet_hrmedseg.io.devices import choose_device
from nnunet_hrmedseg.io.files import read_json
from nnunet_hrmedseg.nnunet_versions import required_nnunet_folder

__all__ = ["train_missing"]

FOLDS = 5  # of nnU-Net's own splits


def train_missing(args: argparse.Namespace, dataset: str) -> None:
    """Train and validate every fold of -tr, -p, -c that has no validation yet, one after the other.

    Raises:
        HRMedSegError: no trainers, no budget, an unprepared data set, or a training that failed.
    """
    if not args.tr:
        raise HRMedSegError("--train: say which trainers, such as -tr nnUNetTrainer nnUNetTrainerHRMedSeg.")
    budget = Budget(args.epochs, args.minutes)
    preprocessed, results = (
        Path(required_nnunet_folder(name)) / dataset for name in ("nnUNet_preprocessed", "nnUNet_results")
    )
    missing = [
        (trainer, plans, configuration, fold)
        for trainer in args.tr
        for plans in args.p or ["nnUNetPlans"]
        for configuration in args.c or ["2d"]
        for fold in args.f or folds_of_splits(preprocessed)
        if not is_validated(results / f"{trainer}__{plans}__{configuration}" / f"fold_{fold}" / "validation", args.npz)
    ]
    device = choose_device(args.device)
    if missing:
        print(
            f"{len(missing)} folds are missing; each is trained for {budget}, on {device}, then validated.", flush=True
        )
    for number, (trainer, plans, configuration, fold) in enumerate(missing, start=1):
        print(f"\n{number} of {len(missing)}: {trainer}, {plans}, {configuration}, fold {fold}", flush=True)
        train_fold(
            dataset,
            configuration,
            fold,
            trainer,
            plans,
            epochs=args.epochs,
            minutes=args.minutes,
            device=device,
            npz=args.npz,
        )


def folds_of_splits(preprocessed: Path) -> list[str]:
    """Those of splits_final.json; without one nnU-Net makes five when it first trains."""
    file = preprocessed / "splits_final.json"
    if not file.is_file():
        return [str(fold) for fold in range(FOLDS)]
    try:
        splits = read_json(file)
        if not isinstance(splits, list):
            raise ValueError(f"it holds a {type(splits).__name__}, not a list of folds")
    except (OSError, ValueError) as error:
        raise HRMedSegError(f"{file} cannot be read: {error}. Remove it, and nnU-Net makes it anew.") from error
    return [str(fold) for fold in range(len(splits))]
