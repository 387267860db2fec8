"""Models to compare: cross-validations of trained models, nnU-Net's ensembles, and folders of predictions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_hrmedseg.errors import DataError, format_names
from nnunet_hrmedseg.io.skipped import is_hidden

__all__ = ["ALL", "Model", "ensembles", "files_by_case", "is_selected", "prediction_folder", "trained_models"]

ALL = "all"  # nnU-Net's name of the fold that is everything


@dataclass(frozen=True, eq=False)  # compared and hashed by identity: models are keys
class Model:
    """Predictions of one model for cases that it was not trained on.

    Attributes:
        name: TRAINER__PLANS__CONFIGURATION, or the name of an ensemble or a folder of predictions.
        files: folds -> case -> prediction. An ensemble or a folder of predictions has one entry, whose key has all
            its folds.
        folder: of the trained model: plans, checkpoints, logs.
        notes: on folds that are left out.
    """

    name: str
    files: dict[tuple[str, ...], dict[str, Path]]
    folder: Path | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def folds(self) -> list[str]:
        """The folds that have predictions."""
        return sorted({fold for folds in self.files for fold in folds}, key=_by_number)

    def predictions(self, folds: Sequence[str]) -> dict[str, Path] | None:
        """Return case -> prediction for exactly these folds, or None if the model does not have them."""
        if tuple(folds) in self.files:
            return self.files[tuple(folds)]
        if not all((fold,) in self.files for fold in folds):
            return None
        return {case: file for fold in folds for case, file in self.files[fold,].items()}

    def cases_of_several(self, folds: Sequence[str]) -> list[str]:
        """Return the cases that more than one of these folds predicted, sorted by name."""
        counts = Counter(case for fold in folds for case in self.files.get((fold,), ()))
        return sorted(case for case, count in counts.items() if count > 1)


def trained_models(
    results: Path,
    file_ending: str,
    trainers: Sequence[str] | None = None,
    plans: Sequence[str] | None = None,
    configurations: Sequence[str] | None = None,
) -> list[Model]:
    """Return the models in a dataset's folder of nnUNet_results that have validated at least one fold.

    Args:
        results: folder of the dataset in nnUNet_results.
        file_ending: of the predictions.
        trainers: names to keep; None keeps all.
        plans: names to keep; None keeps all.
        configurations: names to keep; None keeps all.
    """
    models = []
    folders = results.iterdir() if results.is_dir() else ()
    for folder in sorted(folders, key=lambda folder: folder.name.split("__")):
        if not is_selected(folder.name, trainers, plans, configurations):
            continue
        files: dict[tuple[str, ...], dict[str, Path]] = {}
        notes = []
        for fold_folder in sorted(folder.glob("fold_*")):
            fold = fold_folder.name.removeprefix("fold_")
            predictions = files_by_case(fold_folder / "validation", file_ending)
            if fold == ALL:
                notes.append("fold_all is validated on its own training images and is left out")
            elif not fold.isdecimal():
                notes.append(f"{fold_folder.name} is not a fold by its name and is left out")
            elif predictions:
                files[fold,] = predictions
            else:
                notes.append(f"fold {fold} is not validated yet (nnUNetv2_train ... --val)")
        if files or notes:
            models.append(Model(folder.name, files, folder, notes))
    return models


def is_selected(
    model: str,
    trainers: Sequence[str] | None = None,
    plans: Sequence[str] | None = None,
    configurations: Sequence[str] | None = None,
) -> bool:
    """Return whether this is TRAINER__PLANS__CONFIGURATION of these names, where None is any name."""
    parts = model.split("__")
    wanted = zip(parts, (trainers, plans, configurations), strict=False)
    return len(parts) == 3 and all(names is None or part in names for part, names in wanted)


def ensembles(results: Path, file_ending: str) -> list[Model]:
    """Return the ensembles of nnUNetv2_find_best_configuration in a dataset's folder of nnUNet_results."""
    models = []
    for folder in sorted((results / "ensembles").glob("ensemble___*")):
        *members, folds = folder.name.removeprefix("ensemble___").split("___")
        name = "ensemble of " + " and ".join(members)
        models.append(Model(name, {tuple(folds.split("_")): files_by_case(folder, file_ending)}))
    return models


def prediction_folder(name: str, folder: Path, file_ending: str) -> Model:
    """Return the predictions in a folder as a model of this name.

    Raises:
        DataError: there is no such folder, or no file with this ending in it.
    """
    if not folder.is_dir():
        raise DataError(f"--predictions {name}: there is no folder {folder}.")
    files = files_by_case(folder, file_ending)
    if not files:
        there = format_names(sorted(file.name for file in folder.iterdir())) or "nothing"
        raise DataError(f"--predictions {folder} has no file that ends in {file_ending}. It contains {there}.")
    return Model(name, {(ALL,): files})


def files_by_case(folder: Path, file_ending: str) -> dict[str, Path]:
    """Return case -> file for the files with this ending in a folder, except hidden ones. A missing folder has none."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [file for file in files if file.name.endswith(file_ending) and not is_hidden(file.name)]
    return {file.name[: -len(file_ending)]: file for file in files}


def _by_number(fold: str) -> tuple[int, str]:
    return (int(fold), "") if re.fullmatch(r"\d+", fold) else (10**9, fold)
