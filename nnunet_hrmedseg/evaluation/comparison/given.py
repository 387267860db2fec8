"""What the command line of `hrmedseg compare` points at: a data set's trained models, or folders of predictions."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from nnunet_hrmedseg.errors import HRMedSegError, format_names
from nnunet_hrmedseg.evaluation.comparison.missing import train_missing
from nnunet_hrmedseg.evaluation.comparison.models import (
    Model,
    ensembles,
    files_by_case,
    prediction_folder,
    trained_models,
)
from nnunet_hrmedseg.io.file_names import case_and_channel
from nnunet_hrmedseg.io.raw_cases import find_raw_cases, read_dataset_json
from nnunet_hrmedseg.io.skipped import OF_NNUNET, describe_skipped, find_unused
from nnunet_hrmedseg.nnunet_versions import nnunet_folder, required_nnunet_folder

__all__ = ["ComparisonInputs", "load_inputs"]


@dataclass
class ComparisonInputs:
    """Models to compare, and what their cases are measured and shown with."""

    name: str  # of the data set
    dataset_json: dict[str, Any]
    models: list[Model]
    truth: dict[str, Path]  # case -> reference segmentation
    images: dict[str, list[Path]]  # case -> its channels
    images_from: str  # where they were looked for, in words
    notes: list[str] = field(default_factory=list)  # on files that are not used


def load_inputs(args: argparse.Namespace) -> ComparisonInputs:
    """Find it, and with --train make what is missing of it.

    Raises:
        HRMedSegError: nothing is there, or arguments that do not go together.
    """
    _check_arguments(args)
    if args.predictions:
        given = _from_folders(args)
    else:
        name = _dataset_name(args.dataset)
        if args.train:
            train_missing(args, name)
        given = _from_results(args, name)
    if not given.models:
        raise HRMedSegError(f"There is no trained model of {given.name} with a validated fold to compare.")
    return given


def _check_arguments(args: argparse.Namespace) -> None:
    """Refuse options that would have no effect beside others."""
    of_models = {"-tr": args.tr, "-p": args.p, "-c": args.c, "-f": args.f, "--no_ensembles": args.no_ensembles}
    of_folders = {"--truth": args.truth, "-djfile": args.djfile, "--images": args.images}
    of_training = {"--epochs": args.epochs, "--minutes": args.minutes, "--npz": args.npz}
    if args.predictions:
        wrong = [name for name, value in {**of_models, "--train": args.train, **of_training}.items() if value]
        if wrong:
            raise HRMedSegError(
                f"{', '.join(wrong)}: for trained models (-d DATASET) alone, not for --predictions. Leave out one of "
                f"the two."
            )
        return
    wrong = [name for name, value in of_folders.items() if value]
    if wrong:
        raise HRMedSegError(
            f"{', '.join(wrong)}: for folders of predictions alone. Add --predictions NAME=FOLDER ..., or leave it out."
        )
    wrong = [name for name, value in of_training.items() if value]
    if wrong and not args.train:
        raise HRMedSegError(f"{', '.join(wrong)}: for --train alone. Add --train, or leave it out.")


def _dataset_name(given: str | None) -> str:
    if not given:
        raise HRMedSegError(
            "Say what to compare: -d DATASET, or --predictions NAME=FOLDER ... with --truth and -djfile."
        )
    if nnunet_folder("nnUNet_results") is None:
        raise HRMedSegError("The environment variable nnUNet_results is not set: that is where trained models are.")
    try:
        return maybe_convert_to_dataset_name(int(given) if given.isdigit() else given)
    except RuntimeError as error:
        raise HRMedSegError(f"-d {given}: {error}") from None


def _from_results(args: argparse.Namespace, name: str) -> ComparisonInputs:
    results = required_nnunet_folder("nnUNet_results")
    folder = Path(results) / name
    descriptions = sorted(folder.glob("*__*__*/dataset.json"))
    if not descriptions:
        raise HRMedSegError(f"There is no trained model of {name} in {results}.")
    dataset_json = read_dataset_json(descriptions[0])
    ending = dataset_json["file_ending"]
    models = trained_models(folder, ending, args.tr, args.p, args.c)
    if not args.no_ensembles and not any((args.tr, args.p, args.c)):
        models += ensembles(folder, ending)
    raw, preprocessed = nnunet_folder("nnUNet_raw"), nnunet_folder("nnUNet_preprocessed")
    truths = [Path(preprocessed) / name / "gt_segmentations"] if preprocessed else []
    truths += [Path(raw) / name / "labelsTr"] if raw else []
    truth = next((files for folder in truths if (files := files_by_case(folder, ending))), None)
    if truth is None:
        places = " and ".join(map(str, truths)) or "no folder"
        raise HRMedSegError(f"There are no reference segmentations of {name}; looked in {places}.")
    cases = find_raw_cases(Path(raw) / name, dataset_json) if raw else None
    images = {case: [Path(file) for file in files.images] for case, files in (cases or {}).items()}
    return ComparisonInputs(name, dataset_json, models, truth, images, f"nnUNet_raw/{name}")


def _from_folders(args: argparse.Namespace) -> ComparisonInputs:
    missing = [name for name, value in (("--truth", args.truth), ("-djfile", args.djfile)) if not value]
    if missing:
        raise HRMedSegError(f"--predictions needs {' and '.join(missing)} as well.")
    for option, path in (("--truth", args.truth), ("--images", args.images)):
        if path and not Path(path).is_dir():
            raise HRMedSegError(f"{option} {path}: there is no such folder.")
    dataset_json = read_dataset_json(Path(args.djfile))
    ending = dataset_json["file_ending"]
    models = [prediction_folder(given, ending) for given in args.predictions]
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise HRMedSegError(f"--predictions {' '.join(names)}: two have the same name. Name them: NAME=FOLDER.")
    truth = files_by_case(Path(args.truth), ending)
    if not truth:
        there = format_names(sorted(file.name for file in Path(args.truth).iterdir())) or "nothing"
        raise HRMedSegError(f"--truth {args.truth}: no file ends in {ending} there (there is {there}).")
    images = _images_by_case(Path(args.images), ending, truth) if args.images else {}
    name = args.dataset or Path(args.djfile).resolve().parent.name
    notes = describe_skipped(Path(args.truth), find_unused(Path(args.truth), [*truth.values()], OF_NNUNET))
    for model in models:
        (files,) = (list(of_case.values()) for of_case in model.files.values())
        notes += describe_skipped(files[0].parent, find_unused(files[0].parent, files, (*OF_NNUNET, ".npz", ".pkl")))
    if args.images:
        shown = [file for case, files in images.items() if case in truth for file in files]
        notes += describe_skipped(Path(args.images), find_unused(Path(args.images), shown, OF_NNUNET))
    unpredicted = sorted(set(truth).difference(*(files for model in models for files in model.files.values())))
    if unpredicted:
        notes.append(f"No model predicted {format_names(unpredicted)}: these reference segmentations are left out.")
    return ComparisonInputs(name, dataset_json, models, truth, images, f"--images {args.images}", notes)


def _images_by_case(folder: Path, ending: str, cases: Collection[str]) -> dict[str, list[Path]]:
    """Case -> its files: CASE_0000, CASE_0001, ... for its channels, as in nnU-Net, or one file named as the case."""
    images: dict[str, list[Path]] = {}
    for name, file in sorted(files_by_case(folder, ending).items()):
        named = case_and_channel(name)
        # a case may be called img_0007 itself
        case = name if named is None or name in cases else named[0]
        images.setdefault(case, []).append(file)
    return images
