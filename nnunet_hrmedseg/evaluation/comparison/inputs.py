"""Find what is compared: the trained models of a dataset, or folders of predictions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_hrmedseg.errors import DataError, PlanError, format_names
from nnunet_hrmedseg.evaluation.comparison.models import (
    ALL,
    Model,
    ensembles,
    files_by_case,
    is_selected,
    prediction_folder,
    trained_models,
)
from nnunet_hrmedseg.io.file_names import case_and_channel
from nnunet_hrmedseg.io.files import read_json
from nnunet_hrmedseg.io.raw_cases import find_raw_cases, read_dataset_json
from nnunet_hrmedseg.io.skipped import OF_NNUNET, describe_skipped, find_unused
from nnunet_hrmedseg.nnunet_versions import full_dataset_name, nnunet_folder, required_nnunet_folder

__all__ = ["ComparisonInputs", "PredictionFolders", "TrainedModels", "load_inputs"]


@dataclass(frozen=True)
class TrainedModels:
    """Models of a dataset in nnUNet_results that have a validated fold.

    Attributes:
        dataset: name or number.
        trainers: names of trainers; None for all.
        plans: names of plans; None for all.
        configurations: names of configurations; None for all.
        folds: "0", "1", ...; None for all folds of the baseline.
        ensembles: include the ensembles of nnUNetv2_find_best_configuration, if models are not selected by name.

    Raises:
        PlanError: the fold `all`, which cannot be compared.
    """

    dataset: str | int
    trainers: Sequence[str] | None = None
    plans: Sequence[str] | None = None
    configurations: Sequence[str] | None = None
    folds: Sequence[str] | None = None
    ensembles: bool = True

    def __post_init__(self) -> None:
        if ALL in (self.folds or ()):  # before hours of training
            raise PlanError(
                "-f all: a training with the fold `all` holds no case out, on which it could be compared. Give numbers "
                "of folds, such as -f 0, or leave -f out."
            )


@dataclass(frozen=True)
class PredictionFolders:
    """Folders of predictions of the same cases.

    Attributes:
        predictions: name in the report -> folder.
        truth: folder of the reference segmentations.
        dataset_json: dataset.json of the dataset.
        images: folder of the images, for pictures in the report; None for no pictures.
        name: of the dataset. Default: the folder of dataset.json.
    """

    predictions: Mapping[str, str | Path]
    truth: str | Path
    dataset_json: str | Path
    images: str | Path | None = None
    name: str | None = None


@dataclass
class ComparisonInputs:
    """Models to compare, and the files to measure and show them with.

    Attributes:
        name: of the dataset.
        models: found models and prediction folders.
        truth: case -> reference segmentation.
        images: case -> its channels.
        images_from: where images were searched, for messages.
        notes: on files that are not used.
    """

    name: str
    dataset_json: dict[str, Any]
    models: list[Model]
    truth: dict[str, Path]
    images: dict[str, list[Path]]
    images_from: str
    notes: list[str] = field(default_factory=list)


def load_inputs(models: TrainedModels | PredictionFolders) -> ComparisonInputs:
    """Find the files of the models.

    Raises:
        PlanError: an unknown dataset, or an unreadable dataset.json.
        DataError: no models, predictions or reference segmentations.
        SetupError: a folder or environment variable of nnU-Net is missing.
    """
    found = _from_folders(models) if isinstance(models, PredictionFolders) else _from_results(models)
    if not found.models:
        raise DataError(f"No trained model of {found.name} with a validated fold was found.")
    return found


def _from_results(selection: TrainedModels) -> ComparisonInputs:
    results = required_nnunet_folder("nnUNet_results")
    name = full_dataset_name(selection.dataset)
    folder = Path(results) / name
    descriptions = sorted(folder.glob("*__*__*/dataset.json"))
    if not descriptions:
        raise DataError(f"There is no trained model of {name} in {results}.")
    names = selection.trainers, selection.plans, selection.configurations
    descriptions = [file for file in descriptions if is_selected(file.parent.name, *names)] or descriptions
    dataset_json = read_dataset_json(descriptions[0])
    ending = dataset_json["file_ending"]
    models = trained_models(folder, ending, *names)
    if selection.ensembles and not any(names):
        models += ensembles(folder, ending)
    raw, preprocessed = nnunet_folder("nnUNet_raw"), nnunet_folder("nnUNet_preprocessed")
    truths = [Path(preprocessed) / name / "gt_segmentations"] if preprocessed else []
    truths += [Path(raw) / name / "labelsTr"] if raw else []
    truth = next((files for folder in truths if (files := files_by_case(folder, ending))), None)
    if truth is None:
        places = " and ".join(map(str, truths)) or "no folder"
        raise DataError(f"No reference segmentations of {name} were found in {places}.")
    cases = find_raw_cases(Path(raw) / name, dataset_json) if raw else None
    images = {case: [Path(file) for file in files.images] for case, files in (cases or {}).items()}
    notes = _other_labels(descriptions, dataset_json["labels"])
    return ComparisonInputs(name, dataset_json, models, truth, images, f"nnUNet_raw/{name}", notes)


def _other_labels(descriptions: Sequence[Path], labels: Mapping[str, Any]) -> list[str]:
    """Return a sentence on the models whose dataset.json has other labels than that of the first."""
    others = []
    for file in descriptions[1:]:
        with suppress(OSError, ValueError, AttributeError):  # of a model that is not compared, perhaps
            others += [file.parent.name] if read_json(file).get("labels") != labels else []
    if not others:
        return []
    return [
        f"{format_names(others)} {'was' if len(others) == 1 else 'were'} trained with other labels than "
        f"{descriptions[0].parent.name}, whose classes are measured. Select models of the same labels with -tr, -p and "
        f"-c."
    ]


def _from_folders(folders: PredictionFolders) -> ComparisonInputs:
    truth_folder, images_folder = Path(folders.truth), Path(folders.images) if folders.images else None
    for option, path in (("--truth", truth_folder), ("--images", images_folder)):
        if path and not path.is_dir():
            raise DataError(f"{option} {path}: there is no such folder.")
    description = Path(folders.dataset_json)
    dataset_json = read_dataset_json(description)
    ending = dataset_json["file_ending"]
    models = [prediction_folder(name, Path(folder), ending) for name, folder in folders.predictions.items()]
    truth = files_by_case(truth_folder, ending)
    if not truth:
        there = format_names(sorted(file.name for file in truth_folder.iterdir())) or "nothing"
        raise DataError(f"--truth {truth_folder} has no file that ends in {ending}. It contains {there}.")
    images = _images_by_case(images_folder, ending, truth) if images_folder else {}
    name = folders.name or description.resolve().parent.name
    notes = describe_skipped(truth_folder, find_unused(truth_folder, [*truth.values()], OF_NNUNET))
    for model in models:
        (files,) = (list(by_case.values()) for by_case in model.files.values())
        notes += describe_skipped(files[0].parent, find_unused(files[0].parent, files, (*OF_NNUNET, ".npz", ".pkl")))
    if images_folder:
        shown = [file for case, files in images.items() if case in truth for file in files]
        notes += describe_skipped(images_folder, find_unused(images_folder, shown, OF_NNUNET))
    unpredicted = sorted(set(truth).difference(*(files for model in models for files in model.files.values())))
    if unpredicted:
        notes.append(f"No model predicted {format_names(unpredicted)}: these reference segmentations are left out.")
    return ComparisonInputs(name, dataset_json, models, truth, images, f"--images {images_folder}", notes)


def _images_by_case(folder: Path, ending: str, cases: Collection[str]) -> dict[str, list[Path]]:
    """Return case -> files: CASE_0000, CASE_0001, ... for the channels, as in nnU-Net, or one file named CASE."""
    images: dict[str, list[Path]] = {}
    for name, file in sorted(files_by_case(folder, ending).items()):
        named = case_and_channel(name)
        # the name of a case may itself end like a channel number: img_0007
        case = name if named is None or name in cases else named[0]
        images.setdefault(case, []).append(file)
    return images
