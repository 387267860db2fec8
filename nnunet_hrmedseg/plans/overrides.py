"""Turn any nnU-Net plan into an HRMedSeg plan: a pure function on the plans dict.

What the stock plan says about the dataset (channels, normalization, transpose, spacing) is kept. What HRMedSeg does
differently is replaced: the whole image is resized to a fixed canvas (both papers: "All images are resized to 1024 x
1024"), so the canvas is the patch size, the network is one of `plans.specs.NETWORKS`, and the batch size follows from
its memory.

`nnUNetTrainerHRMedSeg` applies this to the plan that it receives and `nnUNetPlannerHRMedSeg` to the plan that it
writes, so both lead to the same data and the same network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_hrmedseg.errors import PlanError
from nnunet_hrmedseg.plans.configurations import (
    architecture_entry,
    check_dimensions,
    get_spec,
    resolve_configuration,
    user_arguments,
)
from nnunet_hrmedseg.plans.memory import AUTOCAST, DEFAULT_MEMORY_TARGET_GB
from nnunet_hrmedseg.plans.specs import NetworkSpec, find_spec

__all__ = [
    "CANVAS",
    "CANVAS_MULTIPLE",
    "PREPROCESSOR",
    "SELF_CONTAINED_NORMALIZATIONS",
    "STARTED_FROM",
    "canvas_data_identifier",
    "hrmedseg_plans",
    "is_hrmedseg_configuration",
]

CANVAS = (1024, 1024)
"""Height and width that every image is resized to, in pixels (both papers, implementation details)."""

CANVAS_MULTIPLE = 16
"""Stride of the patch embedding; both sides of the canvas are multiples of it."""

PREPROCESSOR = "HRMedSegPreprocessor"
STARTED_FROM = "encoder_started_from"  # key in a configuration: the encoder that a training started from
MIN_BATCH_SIZE = 2  # as in nnU-Net; batch statistics of a single image are not useful
MAX_BATCH_SIZE = 16  # the papers' batch size
MAX_DATASET_COVERED = 0.05  # nnU-Net: a batch covers at most 5 % of the training set

RESAMPLING = {
    f"resampling_fn_{what}{suffix}": value
    for what, is_seg in (("data", False), ("seg", True), ("probabilities", False))
    for suffix, value in (
        ("", "resample_torch_fornnunet"),
        ("_kwargs", {"is_seg": is_seg, "force_separate_z": False, "memefficient_seg_resampling": False}),
    )
}
"""nnU-Net's resampling in torch: at export it takes several times less time and memory than its default. The slice axis
is never resized, so no axis is resampled separately."""

SELF_CONTAINED_NORMALIZATIONS = {
    "ZScoreNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
    "NoNormalization",
}
"""Normalizations that depend only on the image itself."""


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
    """Return the plans with `configuration` turned into an HRMedSeg configuration. The input is not changed.

    Idempotent: values that an HRMedSeg configuration already has (canvas, batch size, network arguments, resampling)
    can be edited by the user and are kept; only `data_identifier` always follows from the rest. `plans_name` and all
    other configurations are kept.

    Args:
        plans: any nnU-Net v2 plans dict (nnUNetPlans, ResEnc presets, with `inherits_from` or not, HRMedSeg's own).
        configuration: a 2D configuration of the plans.
        num_training_cases: `numTraining` of dataset.json; limits the batch size by nnU-Net's 5 % rule.
        num_classes: segmentation heads; used for the memory estimate.
        network: name of a 2D network in `plans.specs.NETWORKS`; default: the plan's own if it is known, else HRMedSeg.
        gpu_memory_target_gb: GPU memory that training may take, in GB. The batch has at least two images, even if they
            take more.
        default_canvas: (height, width) of a configuration that is not an HRMedSeg configuration yet.
        batch_size: batch size of a configuration that is not an HRMedSeg configuration yet (default: as many images as
            fit, up to 16 and up to 5 % of the training images).

    Raises:
        PlanError: unknown network; unknown, 3D or cascaded configuration; a canvas that the network cannot take.

    Examples:
        >>> import json
        >>> from nnunet_hrmedseg import hrmedseg_plans
        >>> with open("nnUNetPlans.json") as file:  # as nnUNetv2_plan_experiment writes it
        ...     plans = json.load(file)
        >>> changed = hrmedseg_plans(plans, num_training_cases=400)["configurations"]["2d"]
        >>> changed["patch_size"], changed["architecture"]["network_class_name"]
        ([1024, 1024], 'nnunet_hrmedseg.architectures.HRMedSeg')
    """
    advice = "HRMedSeg is a 2D network: use the configuration 2d."
    resolved = resolve_configuration(plans, configuration, advice=advice)
    current = find_spec(resolved["architecture"]["network_class_name"])
    spec = get_spec(network or (current.name if current is not None and current.dimensions == 2 else "HRMedSeg"), 2)
    check_dimensions(resolved, configuration, spec)
    is_new = not is_hrmedseg_configuration(resolved)

    if is_new:
        resolved["patch_size"] = list(default_canvas)
        resolved["preprocessor_name"] = PREPROCESSOR
        resolved.update(deepcopy(RESAMPLING))
    resolved["patch_size"] = _checked_canvas(resolved["patch_size"], configuration)
    resolved["architecture"] = architecture_entry(spec, user_arguments(resolved["architecture"], spec))
    resolved.setdefault("encoder_weights", "bundled")

    if is_new:
        slices = plans.get("original_median_shape_after_transp", [1])[0]
        covers_5_percent = round(MAX_DATASET_COVERED * num_training_cases * slices)
        target = batch_size or max(MIN_BATCH_SIZE, min(covers_5_percent, MAX_BATCH_SIZE))
        fitting = _fit_batch(resolved, spec, target, num_classes, gpu_memory_target_gb)
        resolved["batch_size"] = batch_size or max(MIN_BATCH_SIZE, fitting)
        resolved["batch_dice"] = True

    result = deepcopy(plans)
    resolved["data_identifier"] = canvas_data_identifier(result, resolved)
    result["configurations"][configuration] = resolved
    return result


def _fit_batch(
    resolved: dict[str, Any], spec: NetworkSpec, target: int, num_classes: int, gpu_memory_target_gb: float
) -> int:
    """Return how many of `target` images fit, and switch recomputation on in `resolved` if fewer fit without it."""
    arguments = resolved["architecture"]["arch_kwargs"]

    def largest(recompute: bool) -> int:
        return spec.memory.largest_batch_size(
            gpu_memory_target_gb,
            resolved["patch_size"],
            num_input_channels=len(resolved["normalization_schemes"]),
            num_classes=num_classes,
            mode=AUTOCAST,  # the target is that of a GPU, on which nnU-Net trains in mixed precision
            **{**arguments, "recompute": recompute},
        )

    recompute = False
    if "recompute" in arguments:
        recompute = arguments["recompute"] = largest(False) < target
    return min(largest(recompute), target)


def is_hrmedseg_configuration(configuration: dict[str, Any]) -> bool:
    """Return whether a resolved configuration dict is that of a 2D network on a canvas, as `hrmedseg_plans` writes."""
    spec = find_spec(configuration.get("architecture", {}).get("network_class_name"))
    return configuration.get("preprocessor_name") == PREPROCESSOR and spec is not None and spec.dimensions == 2


def canvas_data_identifier(plans: dict[str, Any], configuration: dict[str, Any]) -> str:
    """Return the name of the data folder: the canvas and a digest of everything that preprocessing depends on.

    Plans that lead to the same data share a folder; other plans never overwrite it.

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
    if not set(schemes) <= SELF_CONTAINED_NORMALIZATIONS:
        depends_on["intensities"] = PlansManager(plans).foreground_intensity_properties_per_channel
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
    height, width = configuration["patch_size"]
    return f"HRMedSeg_{height}x{width}_{digest[:8]}"


def _checked_canvas(patch_size: list[int], configuration: str) -> list[int]:
    canvas = [int(side) for side in patch_size]
    if any(side <= 0 or side % CANVAS_MULTIPLE for side in canvas):
        nearest = [max(1, round(side / CANVAS_MULTIPLE)) * CANVAS_MULTIPLE for side in canvas]
        raise PlanError(
            f"The canvas (patch_size) of configuration {configuration!r} is {canvas[0]} x {canvas[1]}; both sides must "
            f"be multiples of {CANVAS_MULTIPLE}. The nearest is {nearest[0]} x {nearest[1]}: set "
            f'"patch_size": {nearest} in the plans file.'
        )
    return canvas
