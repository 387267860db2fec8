"""The card of a shared model: JSON, a README in the format of the Hugging Face Hub, and the license."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

from nnunet_hrmedseg import __version__
from nnunet_hrmedseg.deployment.shared_model import SharedModel, channels_of, place_of, started_from
from nnunet_hrmedseg.io.json_values import numeric_labels
from nnunet_hrmedseg.plans.overrides import is_hrmedseg_configuration
from nnunet_hrmedseg.registration.names import REGISTERED

__all__ = ["CARD", "LICENSE", "NOT_STATED", "POSTPROCESSING", "README", "describe_model", "license_text", "readme"]

CARD, README, LICENSE = "model_card.json", "README.md", "LICENSE.txt"
NOT_STATED = "not stated"

HUB_LICENSES = (
    *("apache-2.0", "mit", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "cc0-1.0", "unlicense"),
    *(f"cc-by-{kind}4.0" for kind in ("", "sa-", "nc-", "nd-", "nc-sa-", "nc-nd-")),
)
"""The most common license names of the Hugging Face Hub."""
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "positional_encoding.gaussian")
"""Ends of names of buffers, which are not parameters."""
POSTPROCESSING = remove_all_but_largest_component_from_segmentation  # the only one that nnU-Net chooses


def describe_model(model: SharedModel, license: str, postprocessing: str) -> dict[str, Any]:
    weights = next(iter(model.folds.values()))["network_weights"]
    unique = {place_of(value): value for name, value in weights.items() if not name.endswith(BUFFERS)}
    trainer, plans, configuration = model.name.split("__")
    patch = [int(side) for side in model.configuration["patch_size"]]
    return {
        "name": f"{model.dataset_name}, {model.name}",
        "license": license if "\n" not in license else f"see {LICENSE}",
        "data_license": model.dataset.get("licence") or model.dataset.get("license"),
        "network": model.network,
        "parameters": sum(value.numel() for value in unique.values()),
        "trainer": trainer,
        "plans": plans,
        "configuration": configuration,
        "previous_stage": model.configuration.get("previous_stage"),
        "folds": list(model.folds),
        "labels": numeric_labels(model.dataset),
        "regions_class_order": model.dataset.get("regions_class_order"),
        "channels": channels_of(model.dataset),
        "file_ending": model.dataset["file_ending"],
        "canvas": patch if is_hrmedseg_configuration(model.configuration) else None,
        "patch_size": patch,
        "training_cases": model.dataset.get("numTraining"),
        "cross_validation_dice": model.dice(),
        "postprocessing": postprocessing,
        "encoder": started_from(model.configuration),
        "versions": {
            "nnunet_hrmedseg": __version__,
            "nnunetv2": version("nnunetv2"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def license_text(model: SharedModel, license: str) -> str:
    if license == NOT_STATED:
        license = "not stated. Ask whoever gave you the model before you use it."
    return (
        f"License of the weights of {model.dataset_name}, {model.name}:\n\n{license}\n\n"
        f"The data that the model was trained on may have terms of its own. The model is not a medical device.\n"
    )


def _front_matter(model: SharedModel, card: Mapping[str, Any], ours: bool) -> list[str]:
    """Return the head of a model card of the Hugging Face Hub, in YAML; JSON's texts and lists are YAML, too."""
    license = re.sub(r"[^a-z0-9.]+", "-", card["license"].lower()).strip("-")
    entries: dict[str, Any] = {"license": license}
    if card["license"] == NOT_STATED:
        entries = {"license": "unknown"}
    elif license not in HUB_LICENSES:
        entries = {"license": "other", "license_name": license[:50] or "see-file", "license_link": LICENSE}
    tags = ["nnunet", "medical-imaging", *(["hrmedseg"] if ours else []), model.network.rpartition(".")[2].lower()]
    entries |= {"library_name": "nnunetv2", "pipeline_tag": "image-segmentation", "tags": [*dict.fromkeys(tags)]}
    return ["---", *(f"{name}: {json.dumps(value)}" for name, value in entries.items()), "---", ""]


def readme(model: SharedModel, card: Mapping[str, Any]) -> str:
    trainer, plans, configuration = model.name.split("__")
    number, folds = model.dataset_name[7:10], " ".join(model.folds)
    ours = trainer in REGISTERED["trainer"] or model.network.startswith("nnunet_hrmedseg.")
    needs = (
        f"nnU-Net v2 and the package nnunet_hrmedseg (made with {__version__})"
        if ours
        else f"nnU-Net v2, with {trainer}"
    )
    channels = ", ".join(f"{name} ({channel})" for channel, name in channels_of(model.dataset).items())
    dice = card["cross_validation_dice"]
    lines = [
        *_front_matter(model, card, ours),
        f"# {model.dataset_name}: {trainer}, {configuration}",
        "",
        f"{card['parameters']:,} parameters, trained on {card['training_cases']} cases. "
        f"Finds {', '.join(name for name in model.dataset['labels'] if name not in ('background', 'ignore'))}."
        + (f" Mean Dice of the cross-validation: {dice['mean']:.3f}." if dice and dice["mean"] is not None else ""),
        "",
        f"It takes {needs} in one Python environment, and the environment variable nnUNet_results. Install it with",
        "",
        "    nnUNetv2_install_pretrained_model_from_zip MODEL.zip",
        "",
        f"or copy the folder {model.dataset_name} into nnUNet_results. Predict with",
        "",
        f"    nnUNetv2_predict -d {number} -tr {trainer} -p {plans} -c {configuration} -f {folds} -i IN -o OUT",
        "",
        f"Images are called CASE_0000{model.dataset['file_ending']}; channels: {channels}.",
    ]
    if card["previous_stage"]:
        lines += ["", f"It is the second stage of a cascade, and needs the predictions of {card['previous_stage']}."]
    if card["postprocessing"].startswith(POSTPROCESSING.__name__):
        lines += [
            "",
            "Then, as it was best in the cross-validation, nnUNetv2_apply_postprocessing with -pp_pkl_file, "
            f"plans.json and dataset.json of the folder {model.crossvalidation}.",
        ]
    lines += [
        "",
        f"What it is, and the sha256 of each file: {CARD}. Terms of use: {LICENSE}. Not a medical device.",
        "",
    ]
    return "\n".join(lines)
