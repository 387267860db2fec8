"""Turn any nnU-Net plan into an HRMedSeg plan: a pure function on the plans dict.

The stock plan knows the data set (channels, normalisation, transpose, spacing) and keeps its say on all of that. What
is replaced is what HRMedSeg does differently: the whole image is resized to a fixed canvas (both papers: "All images
are resized to 1024 x 1024"), so canvas and patch are one size, the network is ours, and the batch size follows from its
memory.

`nnUNetTrainerHRMedSeg` calls this on the plan it is given and `nnUNetPlannerHRMedSeg` on the plan it writes, so both
roads lead to the same data and the same network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.plans.memory import AUTOCAST, largest_batch_size
from nnunet_hrmedseg.plans.plan_check import check_configuration, check_plans, plans_file
from nnunet_hrmedseg.plans.specs import NETWORKS, network_name_of

__all__ = [
    "CANVAS",
    "CANVAS_MULTIPLE",
    "DEFAULT_MEMORY_TARGET_GB",
    "PREPROCESSOR",
    "STARTED_FROM",
    "canvas_data_identifier",
    "hrmedseg_plans",
    "is_hrmedseg_configuration",
    "resolve_configuration",
]

CANVAS = (1024, 1024)
"""Height and width that every image is resized to, in pixels (both papers, implementation details)."""

CANVAS_MULTIPLE = 16
"""The patch embedding's stride: a canvas side is a multiple of it."""

PREPROCESSOR = "HRMedSegPreprocessor"
STARTED_FROM = "encoder_started_from"  # where the trainer notes in a configuration which encoder it started from
MIN_BATCH_SIZE = 2  # nnU-Net's own floor; batch statistics of a single image are useless
MAX_BATCH_SIZE = 16  # the papers' batch size
MAX_DATASET_COVERED = 0.05  # nnU-Net: a batch covers at most 5 % of the training set
DEFAULT_MEMORY_TARGET_GB = 8.0  # nnU-Net's default for -gpu_memory_target

RESAMPLING = {
    f"resampling_fn_{what}{suffix}": value
    for what, is_seg in (("data", False), ("seg", True), ("probabilities", False))
    for suffix, value in (
        ("", "resample_torch_fornnunet"),
        ("_kwargs", {"is_seg": is_seg, "force_separate_z": False, "memefficient_seg_resampling": False}),
    )
}
"""Torch resampling under nnU-Net's own name: several times faster and smaller at export than its default. The canvas
leaves the slice axis alone, so no axis is ever resampled separately."""

# normalisations that look at nothing but the image itself
_SELF_CONTAINED_NORMALIZATIONS = {
    "ZScoreNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
    "NoNormalization",
}


def hrmedseg_plans(
    plans: dict[str, Any],
    configuration: str = "2d",
    *,
    num_training_cases: int,
    num_classes: int = 2,
    network: str | None = None,
    gpu_memory_target_gb: float = DEFAULT_MEMORY_TARGET_GB,
    default_canvas: Sequence[int] = CANVAS,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """The same plans with `configuration` turned into an HRMedSeg configuration. The input is left as it is.

    Idempotent: what an HRMedSeg configuration already says (canvas, batch size, network arguments, resampling) is the
    user's to edit and is kept; only `data_identifier` always follows from the rest. `plans_name` and all other
    configurations stay.

    Args:
        plans: any nnU-Net v2 plans dict (nnUNetPlans, ResEnc presets, with `inherits_from` or not, HRMedSeg's own).
        configuration: a 2D configuration of it.
        num_training_cases: `numTraining` of dataset.json; limits the batch size by nnU-Net's 5 % rule.
        num_classes: segmentation heads; enters the memory estimate.
        network: a row of `plans.networks.NETWORKS`; default: the plan's own where it is one of ours, else HRMedSeg.
        gpu_memory_target_gb: GPU memory that training may take, in GB; at least two images are taken, even above it.
        default_canvas: (height, width) of a configuration that is not an HRMedSeg configuration yet.
        batch_size: batch size of a configuration that is not HRMedSeg's yet (default: what fits, up to 16 images and
            5 % of the training images).

    Raises:
        HRMedSegError: unknown, 3D or cascaded configuration; a canvas that the network cannot take.
    """
    resolved = resolve_configuration(plans, configuration, advice="HRMedSeg is a 2D network: use the configuration 2d.")
    _validate_configuration(resolved, configuration)
    ours = is_hrmedseg_configuration(resolved)

    if not ours:
        resolved["patch_size"] = list(default_canvas)
        resolved["preprocessor_name"] = PREPROCESSOR
        resolved.update(deepcopy(RESAMPLING))
    canvas = _checked_canvas(resolved["patch_size"], configuration)
    resolved["patch_size"] = canvas
    resolved["architecture"] = _architecture(resolved["architecture"], network)
    resolved.setdefault("encoder_weights", "bundled")

    if not ours:
        kwargs = resolved["architecture"]["arch_kwargs"]
        slices = plans.get("original_median_shape_after_transp", [1])[0]
        covers_5_percent = round(MAX_DATASET_COVERED * num_training_cases * slices)
        wanted = batch_size or max(MIN_BATCH_SIZE, min(covers_5_percent, MAX_BATCH_SIZE))
        fast, frugal = (
            largest_batch_size(
                gpu_memory_target_gb,
                canvas,
                num_input_channels=len(resolved["normalization_schemes"]),
                num_classes=num_classes,
                embed_dim=kwargs["embed_dim"],
                depth=kwargs["depth"],
                recompute=recompute,
                mode=AUTOCAST,  # the target is a GPU's, where nnU-Net trains in mixed precision
            )
            for recompute in (False, True)
        )
        kwargs["recompute"] = fast < wanted
        fits = frugal if kwargs["recompute"] else fast
        resolved["batch_size"] = batch_size or max(MIN_BATCH_SIZE, min(fits, wanted))
        resolved["batch_dice"] = True

    result = deepcopy(plans)
    resolved["data_identifier"] = canvas_data_identifier(result, resolved)
    result["configurations"][configuration] = resolved
    return result


def is_hrmedseg_configuration(configuration: dict[str, Any]) -> bool:
    """Whether a resolved configuration dict is already one of ours (its preprocessor and its network are)."""
    return configuration.get("preprocessor_name") == PREPROCESSOR and (
        network_name_of(configuration.get("architecture", {}).get("network_class_name")) is not None
    )


def resolve_configuration(plans: dict[str, Any], configuration: str, *, advice: str) -> dict[str, Any]:
    """The configuration as one flat dict: `inherits_from` followed, formats of older nnU-Net versions converted.

    Raises:
        HRMedSegError: there is no such configuration (the message ends with `advice`), or it has a value of a wrong
            type.
    """
    check_plans(plans)
    available = list(plans["configurations"])
    if configuration not in available:
        raise HRMedSegError(
            f"The plans {plans.get('plans_name')!r} have no configuration {configuration!r}; they have {available}. "
            f"{advice}"
        )
    try:
        resolved = deepcopy(PlansManager(deepcopy(plans)).get_configuration(configuration).configuration)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise HRMedSegError(
            f"nnU-Net cannot read the configuration {configuration!r} of the plans {plans.get('plans_name')!r} "
            f"({type(error).__name__}: {error}). Correct it in {plans_file(plans)}, or plan again."
        ) from error
    resolved.pop("inherits_from", None)
    check_configuration(plans, configuration, resolved)
    return resolved


def canvas_data_identifier(plans: dict[str, Any], configuration: dict[str, Any]) -> str:
    """Name of the folder of preprocessed data: the canvas and a digest of everything that preprocessing depends on.

    Two plans that lead to the same data share it, two that do not can never overwrite each other's.

    Args:
        plans: the whole plans dict.
        configuration: the resolved configuration.
    """
    schemes = configuration["normalization_schemes"]
    depends_on = {
        "canvas": list(configuration["patch_size"]),
        "preprocessor": configuration["preprocessor_name"],
        "normalization_schemes": schemes,
        "use_mask_for_norm": configuration["use_mask_for_norm"],
        "transpose_forward": plans["transpose_forward"],
        "image_reader_writer": plans["image_reader_writer"],
    }
    if not set(schemes) <= _SELF_CONTAINED_NORMALIZATIONS:
        depends_on["intensities"] = PlansManager(plans).foreground_intensity_properties_per_channel
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
    height, width = configuration["patch_size"]
    return f"HRMedSeg_{height}x{width}_{digest[:8]}"


def _validate_configuration(resolved: dict[str, Any], configuration: str) -> None:
    if resolved.get("previous_stage"):
        raise HRMedSegError(
            f"Configuration {configuration!r} is the second stage of a cascade (previous_stage: "
            f"{resolved['previous_stage']!r}). HRMedSeg sees the whole image at once and has no cascade: use the "
            f"configuration 2d, or train the cascade with a stock nnU-Net trainer."
        )
    if len(resolved["patch_size"]) != 2:
        raise HRMedSegError(
            f"Configuration {configuration!r} is {len(resolved['patch_size'])}D (patch size {resolved['patch_size']}). "
            f"HRMedSeg is a 2D network: use the configuration 2d, which goes through a volume slice by slice, or train "
            f"{configuration} with -tr nnUNetTrainerSegMaFormer or a stock nnU-Net trainer."
        )


def _checked_canvas(patch_size: list[int], configuration: str) -> list[int]:
    canvas = [int(side) for side in patch_size]
    if any(side <= 0 or side % CANVAS_MULTIPLE for side in canvas):
        nearest = [max(1, round(side / CANVAS_MULTIPLE)) * CANVAS_MULTIPLE for side in canvas]
        raise HRMedSegError(
            f"The canvas (patch_size) of configuration {configuration!r} is {canvas[0]} x {canvas[1]}; both sides must "
            f"be multiples of {CANVAS_MULTIPLE}. The nearest is {nearest[0]} x {nearest[1]}: put "
            f'"patch_size": {nearest} into the plans file.'
        )
    return canvas


def _architecture(architecture: dict[str, Any], network: str | None) -> dict[str, Any]:
    """The plan's `architecture` entry for `network`, with the arguments that a user changed carried over."""
    current = network_name_of(architecture["network_class_name"])
    wanted = network or current or "HRMedSeg"
    if wanted not in NETWORKS:
        raise HRMedSegError(f"There is no network {wanted!r}; there are {list(NETWORKS)}.")
    edits: dict[str, Any] = {}
    if current is not None:
        defaults = NETWORKS[current].arguments
        edits = {k: v for k, v in architecture["arch_kwargs"].items() if k not in defaults or defaults[k] != v}
    return {
        "network_class_name": NETWORKS[wanted].class_path,
        "arch_kwargs": {**deepcopy(NETWORKS[wanted].arguments), **deepcopy(edits)},
        "_kw_requires_import": [],
    }
