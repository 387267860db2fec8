"""`hrmedseg compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_hrmedseg.cli.argument_types import fold, not_negative_float, not_negative_int, positive_float, positive_int
from nnunet_hrmedseg.errors import DataError, PlanError

if TYPE_CHECKING:
    from nnunet_hrmedseg.evaluation.comparison.inputs import PredictionFolders, TrainedModels

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "compare trained models of a dataset: statistics, cost, and an HTML report"
DESCRIPTION = (
    "Measure trained models of a dataset, or folders of predictions, on the same cases: Dice, IoU, surface "
    "distances, tests against a baseline, cost. Writes report.html, comparison.json and cases.csv. Required: -d "
    "DATASET; or --predictions, --truth and -djfile."
)
ON_INTERRUPTION = "Trained folds are kept: with --train, repeat the command to continue."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    models = parser.add_argument_group(
        "trained models", "By default every model of the dataset in nnUNet_results that has a validated fold."
    )
    models.add_argument(
        "-d", "--dataset", default=None, metavar="DATASET", help="name or number of the dataset, as in nnU-Net"
    )
    models.add_argument("-tr", nargs="+", default=None, metavar="TRAINER", help="trainers to compare [default: all]")
    models.add_argument("-p", nargs="+", default=None, metavar="PLANS", help="names of plans to compare [default: all]")
    models.add_argument(
        "-c", nargs="+", default=None, metavar="CONFIGURATION", help="configurations to compare [default: all]"
    )
    models.add_argument(
        "-f",
        nargs="+",
        type=fold,
        default=None,
        metavar="FOLD",
        help="folds to compare: 0, 1, ... [default: all that the baseline has]",
    )
    models.add_argument(
        "--no_ensembles",
        action="store_true",
        help="leave out the ensembles of nnUNetv2_find_best_configuration [default: compare them as well]",
    )
    models.add_argument(
        "--baseline",
        default=None,
        metavar="NAME",
        help="model that the others are tested against: its name, or a part that no other name has "
        "[default: the first one of nnUNetTrainer, else the first model]",
    )

    folders = parser.add_argument_group("folders of predictions, in place of trained models")
    folders.add_argument(
        "--predictions",
        nargs="+",
        default=None,
        metavar="NAME=FOLDER",
        help="folders of predictions of the same cases, each with the name that the report calls it by "
        "[default name: that of the folder]",
    )
    folders.add_argument("--truth", default=None, metavar="FOLDER", help="folder of their reference segmentations")
    folders.add_argument(
        "-djfile", default=None, metavar="FILE", help="dataset.json of the dataset, as in nnUNetv2_evaluate_folder"
    )
    folders.add_argument(
        "--images",
        default=None,
        metavar="FOLDER",
        help="folder of their images, for pictures in the report: CASE_0000, CASE_0001, ... for the channels of a "
        "case, or CASE [default: no pictures]",
    )

    train = parser.add_argument_group("training of missing folds")
    train.add_argument(
        "--train",
        action="store_true",
        help="first train the folds of -tr (and -p, -c, -f) that are not validated yet; requires -tr, and --epochs or "
        "--minutes [default: train nothing]",
    )
    train.add_argument(
        "--epochs", type=positive_int, default=None, help="length of each training in nnU-Net's epochs, 250 iterations"
    )
    train.add_argument(
        "--minutes", type=positive_float, default=None, help="length of each training in minutes, without validation"
    )
    train.add_argument(
        "--npz",
        action="store_true",
        help="save the probabilities of the validation cases, which ensembles need [default: label maps alone]",
    )

    what = parser.add_argument_group("measurement and output")
    what.add_argument(
        "--tolerance",
        type=not_negative_float,
        default=2.0,
        help="distance up to which boundaries agree in the normalized surface Dice, in mm, or in pixels for natural "
        "images [default: %(default)s]",
    )
    what.add_argument(
        "--cost_images",
        type=not_negative_int,
        default=3,
        help="number of images that every model predicts for its time in seconds; 0: none [default: %(default)s]",
    )
    what.add_argument(
        "-device",
        choices=("cuda", "cpu", "mps"),
        default=None,
        help="device to train and predict on [default: cuda, else mps, else cpu]",
    )
    what.add_argument(
        "-np",
        type=positive_int,
        default=None,
        help="number of processes that measure cases [default: the environment variable nnUNet_def_n_proc, else 8]",
    )
    what.add_argument(
        "-o",
        "--output",
        default=None,
        metavar="FOLDER",
        help="folder to write the report to [default: hrmedseg_comparison_DATASET, in the current folder]",
    )


def run(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.evaluation.comparison.compare import compare
    from nnunet_hrmedseg.evaluation.comparison.missing import TrainingOptions

    training = TrainingOptions(args.epochs, args.minutes, args.npz) if args.train else None
    result = compare(
        _selection(args),
        baseline=args.baseline,
        training=training,
        tolerance=args.tolerance,
        cost_images=args.cost_images,
        device=args.device,
        processes=args.np,
        output=args.output,
    )
    print(result.table())
    for warning in result.results.warnings:
        print(f"Note: {warning}")
    print(f"Wrote {result.report}, {result.json.name} and {result.cases.name}.")
    return 0


def _selection(args: argparse.Namespace) -> TrainedModels | PredictionFolders:
    """Return what to compare.

    Raises:
        PlanError: options that exclude each other, or are missing.
    """
    from nnunet_hrmedseg.evaluation.comparison.inputs import PredictionFolders, TrainedModels

    _check_combination(args)
    if args.predictions:
        folders = parse_folders(args.predictions)
        return PredictionFolders(folders, args.truth, args.djfile, args.images, args.dataset)
    return TrainedModels(args.dataset, args.tr, args.p, args.c, args.f, not args.no_ensembles)


def _check_combination(args: argparse.Namespace) -> None:
    for_models = {"-tr": args.tr, "-p": args.p, "-c": args.c, "-f": args.f, "--no_ensembles": args.no_ensembles}
    for_folders = {"--truth": args.truth, "-djfile": args.djfile, "--images": args.images}
    for_training = {"--epochs": args.epochs, "--minutes": args.minutes, "--npz": args.npz}
    if args.predictions:
        unused = _given({**for_models, "--train": args.train, **for_training})
        if unused:
            raise PlanError(f"{unused}: only for trained models (-d DATASET), not for --predictions. Give one of both.")
        missing = [name for name in ("--truth", "-djfile") if not for_folders[name]]
        if missing:
            raise PlanError(f"--predictions also needs {' and '.join(missing)}.")
        return
    if not args.dataset:
        raise PlanError("Give the models: -d DATASET, or --predictions NAME=FOLDER ... with --truth and -djfile.")
    if unused := _given(for_folders):
        raise PlanError(
            f"{unused}: only for folders of predictions. Add --predictions NAME=FOLDER ..., or leave it out."
        )
    if not args.train and (unused := _given(for_training)):
        raise PlanError(f"{unused}: only with --train. Add --train, or leave it out.")


def _given(options: dict[str, object]) -> str:
    return ", ".join(name for name, value in options.items() if value)


def parse_folders(texts: list[str]) -> dict[str, Path]:
    """Parse NAME=FOLDER or FOLDER. A folder that exists under the whole text takes precedence, such as lr=0.01.

    Raises:
        DataError: a folder that does not exist, or two with the same name.
    """
    folders: dict[str, Path] = {}
    for text in texts:
        name, separator, path = text.partition("=")
        if not separator or Path(text).is_dir():
            name, path = Path(text).resolve().name, text
        if not Path(path).is_dir():
            alternative = f" or {text}" if separator else ""
            raise DataError(f"--predictions {text}: there is no folder {path}{alternative}.")
        if name in folders:
            raise DataError(f"--predictions {' '.join(texts)}: two folders have the name {name}. Give NAME=FOLDER.")
        folders[name] = Path(path)
    return folders
