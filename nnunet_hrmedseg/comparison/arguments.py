"""The command line of `hrmedseg compare`. Imports nothing heavy."""

from __future__ import annotations

import argparse

__all__ = ["add_compare_arguments"]


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    models = parser.add_argument_group("which models", "by default all that nnUNet_results has of the data set")
    models.add_argument("-d", "--dataset", default=None, metavar="DATASET", help="name or number, as in nnU-Net")
    models.add_argument("-tr", nargs="+", default=None, metavar="TRAINER", help="only these trainers")
    models.add_argument("-p", nargs="+", default=None, metavar="PLANS", help="only these plans")
    models.add_argument("-c", nargs="+", default=None, metavar="CONFIGURATION", help="only these configurations")
    models.add_argument("-f", nargs="+", default=None, metavar="FOLD", help="[default: all that the baseline has]")
    models.add_argument(
        "--no_ensembles", action="store_true", help="leave out the ensembles of nnUNetv2_find_best_configuration"
    )
    models.add_argument(
        "--baseline",
        default=None,
        metavar="NAME",
        help="what the others are tested against, by a part of its name [default: nnUNetTrainer]",
    )

    folders = parser.add_argument_group("or folders of predictions")
    folders.add_argument("--predictions", nargs="+", default=None, metavar="NAME=FOLDER", help="of the same cases")
    folders.add_argument("--truth", default=None, metavar="FOLDER", help="their reference segmentations")
    folders.add_argument("-djfile", default=None, metavar="FILE", help="dataset.json, as in nnUNetv2_evaluate_folder")
    folders.add_argument(
        "--images",
        default=None,
        metavar="FOLDER",
        help="for the gallery: CASE_0000, CASE_0001, ... for the channels, or CASE [default: no gallery]",
    )

    train = parser.add_argument_group("train what is missing")
    train.add_argument(
        "--train",
        action="store_true",
        help="first train the folds that are missing of -tr (and -p, -c) with the same splits; needs a budget",
    )
    train.add_argument("--epochs", type=int, default=None, help="budget of each fold in nnU-Net's epochs")
    train.add_argument("--minutes", type=float, default=None, help="budget of each fold in minutes of training")
    train.add_argument("--npz", action="store_true", help="save probabilities as well, for ensembling")

    what = parser.add_argument_group("what is measured and written")
    what.add_argument(
        "--tolerance",
        type=float,
        default=2.0,
        help="of the normalised surface Dice, in mm, or in pixels for natural images [default: %(default)s]",
    )
    what.add_argument(
        "--cost_images", type=int, default=3, help="predicted by every model, for its time; 0: none [default: 3]"
    )
    what.add_argument("-device", choices=("cuda", "cpu", "mps"), default=None, help="[default: the best there is]")
    what.add_argument("-np", type=int, default=None, help="processes that measure [default: nnUNet_def_n_proc]")
    what.add_argument(
        "-o", "--output", default=None, metavar="FOLDER", help="[default: hrmedseg_comparison_DATASET, here]"
    )
