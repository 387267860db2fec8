"""Content of a trained model's folder for sharing: without optimizer state, paths and names of training cases."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nnunet_hrmedseg.deployment.folds import checkpoints_of
from nnunet_hrmedseg.deployment.private_texts import PrivacyFilter, iter_strings
from nnunet_hrmedseg.errors import CheckpointError, DataError, format_names
from nnunet_hrmedseg.io.checkpoints import load_checkpoint
from nnunet_hrmedseg.io.files import read_json, read_json_object
from nnunet_hrmedseg.io.raw_cases import read_dataset_json
from nnunet_hrmedseg.nnunet_versions import nnunet_folder
from nnunet_hrmedseg.plans.overrides import STARTED_FROM
from nnunet_hrmedseg.plans.trained_with import check_trained_with

__all__ = ["CHECKPOINT", "SharedModel", "channels_of", "number_or_none", "place_of", "started_from"]

CHECKPOINT = "checkpoint_final.pth"  # name of every shared checkpoint, because nnU-Net looks for it
NEEDED = (
    "channel_names",
    "modality",
    "labels",
    "regions_class_order",
    "file_ending",
    "overwrite_image_reader_writer",
    "numTraining",
)
"""Entries of dataset.json that prediction reads, and the number of training cases."""
TOLD = ("name", "description", "reference", "licence", "license", "release", "tensorImageSize")
"""Further entries of dataset.json that are kept if they contain nothing private."""


class SharedModel:
    """The content of a trained model's folder.

    Attributes:
        name, dataset_name: of the folder and of the one above.
        plans, dataset: plans.json and dataset.json as they are to be shared.
        folds: name -> its checkpoint, as it is to be shared.
        configuration: of the plans, resolved.
        private: what must not be in any file.
        summaries: fold -> its validation, as nnU-Net wrote it; of the folds that have one.
    """

    def __init__(self, folder: Path, plans: dict[str, Any], dataset: dict[str, Any], folds: dict[str, dict]) -> None:
        self.folder = folder.resolve()
        self.name, self.dataset_name = self.folder.name, self.folder.parent.name
        self.folds = folds
        self.configuration_name = next(iter(folds.values()))["init_args"]["configuration"]
        try:
            self.configuration = PlansManager(plans).get_configuration(self.configuration_name).configuration
            self.network = self.configuration["architecture"]["network_class_name"]
            public = [*dataset["labels"], *channels_of(dataset).values(), *plans["configurations"]]
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder / 'plans.json'} does not describe the configuration {self.configuration_name!r} that the "
                f"checkpoints were trained with ({type(error).__name__}: {error}). Copy the folder again."
            ) from error
        found = {fold: self.summary_of(folder / f"fold_{fold}" / "validation" / "summary.json") for fold in folds}
        self.summaries = {fold: summary for fold, summary in found.items() if summary}
        self.private = PrivacyFilter(
            _cases(folder, dataset, self.summaries),
            [*map(str, public), *self.name.split("__"), self.dataset_name, self.dataset_name[11:]],
        )
        self.plans = self.private.redact(_without_encoder_paths(plans))
        shared = PlansManager(self.plans).get_configuration(self.configuration_name).configuration
        if shared.get("architecture") != self.configuration["architecture"]:
            raise DataError(
                f"The architecture in {folder / 'plans.json'} names paths or training cases: it cannot be shared like "
                f"this. Change the names there."
            )
        told = self.private.redact({name: dataset[name] for name in TOLD if name in dataset})
        self.dataset = {**{name: dataset[name] for name in NEEDED if name in dataset}, **told}

    @classmethod
    def read(cls, folder: Path, folds: Sequence[int | str] | None, checkpoint: str) -> SharedModel:
        if not folder.is_dir():
            raise CheckpointError(
                f"There is no folder {folder}. Give that of a trained model: "
                f"nnUNet_results/DatasetNNN_Name/TRAINER__PLANS__CONFIGURATION."
            )
        resolved = folder.resolve()
        if len(resolved.name.split("__")) != 3 or not re.fullmatch(r"Dataset\d{3}_.+", resolved.parent.name):
            raise CheckpointError(
                f"{folder} is not where nnU-Net keeps a trained model: the folder should be called "
                f"DatasetNNN_Name/TRAINER__PLANS__CONFIGURATION, and is {resolved.parent.name}/{resolved.name}."
            )
        files = checkpoints_of(folder, folds, checkpoint, all_beside_others=True)
        plans, dataset = (
            read_json_object(folder / "plans.json", "nnU-Net plan"),
            read_dataset_json(folder / "dataset.json"),
        )
        return cls(folder, plans, dataset, {fold: _shared_checkpoint(file, plans) for fold, file in files.items()})

    @staticmethod
    def summary_of(file: Path) -> dict[str, Any]:
        """Return a summary.json, or an empty dict if it does not exist or has another format."""
        try:
            content = read_json(file)
            float(content["foreground_mean"]["Dice"])
            return content if isinstance(content["metric_per_case"], list) else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    @property
    def crossvalidation(self) -> str:
        """nnU-Net's name of the folder with results over these folds."""
        return "crossval_results_folds_" + "_".join(self.folds)

    def dice(self) -> dict[str, Any] | None:
        """Return the Dice of the cross-validation, nnU-Net's foreground_mean; None if no fold was validated."""
        validated = {fold: summary for fold, summary in self.summaries.items() if fold != "all"}
        weights = [len(summary["metric_per_case"]) for summary in validated.values()]
        if not sum(weights):
            return None
        of_folds = {fold: number_or_none(summary["foreground_mean"]["Dice"]) for fold, summary in validated.items()}
        whole = self.summary_of(self.folder / self.crossvalidation / "summary.json")
        if whole:
            mean = number_or_none(whole["foreground_mean"]["Dice"])
        elif None in of_folds.values():
            mean = None
        else:
            pairs = zip(of_folds.values(), weights, strict=True)
            mean = sum(dice * weight for dice, weight in pairs if dice is not None) / sum(weights)
        return {"mean": mean, "folds": of_folds, "cases": sum(weights)}


def _shared_checkpoint(file: Path, plans: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a checkpoint that nnU-Net's prediction reads. Tensors with two names are kept once."""
    trained = load_checkpoint(file)
    check_trained_with(trained, plans, str(file), str(file.parent.parent / "plans.json"))
    try:
        weights, trainer = trained["network_weights"], trained["trainer_name"]
        configuration, axes = trained["init_args"]["configuration"], trained.get("inference_allowed_mirroring_axes")
        whole = isinstance(trainer, str) and isinstance(configuration, str) and bool(weights)
        whole &= all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items())
        axes = None if axes is None else tuple(int(axis) for axis in axes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{file} is not a checkpoint of nnU-Net v2 ({type(error).__name__}: {error}). It holds "
            f"{format_names(list(trained))}."
        ) from error
    if not whole:
        raise CheckpointError(
            f"{file} is not a checkpoint of nnU-Net v2: weights, trainer or configuration are missing."
        )
    copies: dict[tuple, Tensor] = {}
    # copied, because torch.save writes the whole storage of a view
    kept = {
        name: copies.setdefault(place_of(value), value.detach().cpu().clone(memory_format=torch.contiguous_format))
        for name, value in weights.items()
    }
    return {
        "network_weights": kept,
        "trainer_name": trainer,
        "init_args": {"configuration": configuration},
        "inference_allowed_mirroring_axes": axes,
    }


def place_of(value: Tensor) -> tuple:
    return (value.data_ptr() if value.numel() else id(value), tuple(value.shape), value.stride(), value.dtype)


def channels_of(dataset: Mapping[str, Any]) -> dict[str, Any]:
    return dataset.get("channel_names") or dataset.get("modality") or {}


def _cases(folder: Path, dataset: Mapping[str, Any], summaries: Mapping[str, dict]) -> set[str]:
    """Return the names of training cases from all files that may contain them."""
    ending, files = dataset["file_ending"], []
    for fold in folder.glob("fold_*"):
        files += [entry.name for entry in fold.glob("validation/*") if entry.name.endswith(ending)]
    for summary in summaries.values():
        files += [Path(text).name for text in iter_strings(summary["metric_per_case"]) if text.endswith(ending)]
    listed = [dataset.get(part) for part in ("training", "test", "dataset")]
    files += [Path(text).name for text in iter_strings(listed) if text.endswith(ending)]
    stems = {file[: -len(ending)] for file in files}
    names = stems | {re.sub(r"_000\d$", "", stem) for stem in stems}  # a channel's number, or a case's own
    if isinstance(dataset.get("dataset"), dict):
        names |= {*dataset["dataset"]}
    preprocessed = nnunet_folder("nnUNet_preprocessed")
    if preprocessed:
        splits = Path(preprocessed, folder.resolve().parent.name, "splits_final.json")
        try:
            names |= {name for name in iter_strings(read_json(splits)) if name not in ("train", "val")}
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            raise DataError(f"{splits}, with the names not to be shared, cannot be read: {error}.") from error
    return {name for name in names if name}


def _without_encoder_paths(plans: dict[str, Any]) -> dict[str, Any]:
    """Return plans that name the initial encoder by name and sha256, without its path."""
    configurations = {}
    for name, configuration in plans["configurations"].items():
        configurations[name] = {k: v for k, v in configuration.items() if k not in (STARTED_FROM, "encoder_weights")}
        started = started_from(configuration)
        if started is not None:
            configurations[name][STARTED_FROM] = started
        if configuration.get("encoder_weights") in ("bundled", "none"):
            configurations[name]["encoder_weights"] = configuration["encoder_weights"]
    return {**plans, "configurations": configurations}


def started_from(configuration: Mapping[str, Any]) -> dict[str, str] | None:
    record = configuration.get(STARTED_FROM)
    if not isinstance(record, dict):
        return None
    kept = {name: str(record[name]) for name in ("name", "sha256") if record.get(name)}
    return {"file": record["file"], **kept} if record.get("file") in ("bundled", "none") else kept


def number_or_none(value: Any) -> float | None:
    return float(value) if math.isfinite(float(value)) else None
