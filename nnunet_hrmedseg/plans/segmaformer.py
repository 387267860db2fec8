"""Turn a 3D configuration of any nnU-Net plan into a SegMaFormer configuration: a pure function on the plans dict.

Everything that nnU-Net found out about the data set stays: spacing, patch size, batch size, normalisation, resampling,
and so the preprocessed data. The network is replaced, and shaped as nnU-Net shapes its own: along which axis is reduced
by how much, and which kernels are flat, follows from spacing and patch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.plans.overrides import DEFAULT_MEMORY_TARGET_GB, resolve_configuration
from nnunet_hrmedseg.plans.segmaformer_memory import GPU_CONTEXT_GB, training_memory_gb
from nnunet_hrmedseg.plans.specs import SEGMAFORMER

__all__ = ["segmaformer_plans", "segmaformer_shape"]

MIN_FEATURE_MAP = 4  # nnU-Net's: no axis is reduced to fewer tokens
HALVINGS_OF_STAGES = (2, 1, 1, 1)  # the paper's strides 4, 2, 2, 2


def segmaformer_plans(
    plans: dict[str, Any],
    configuration: str = "3d_fullres",
    *,
    num_classes: int = 2,
    gpu_memory_target_gb: float = DEFAULT_MEMORY_TARGET_GB,
) -> dict[str, Any]:
    """The same plans with `configuration` turned into a SegMaFormer configuration. The input is left as it is.

    Idempotent: arguments of the network that a SegMaFormer configuration already has are the user's to edit and are
    kept; missing ones are filled in. All other configurations stay.

    Args:
        plans: any nnU-Net v2 plans dict.
        configuration: a 3D configuration of it, but the second stage of a cascade.
        num_classes: segmentation heads; enters the memory estimate.
        gpu_memory_target_gb: GPU memory that training may take, in GB, before blocks are evaluated again in the
            backward pass instead of kept. Patch and batch do not depend on it.

    Raises:
        HRMedSegError: unknown, 2D or cascaded configuration.
    """
    advice = "SegMaFormer is a 3D network: use 3d_fullres of nnUNetPlans or nnUNetSegMaFormerPlans."
    resolved = resolve_configuration(plans, configuration, advice=advice)
    _validate_configuration(resolved, configuration)
    resolved.pop("next_stage", None)  # there is no cascade to predict for

    architecture = resolved["architecture"]
    ours = architecture["network_class_name"] == SEGMAFORMER.class_path
    kept = architecture["arch_kwargs"] if ours else {}
    shape = segmaformer_shape(resolved["patch_size"], resolved["spacing"])
    arguments = {**deepcopy(SEGMAFORMER.arguments), **shape, **deepcopy(kept)}
    if "recompute" not in kept:
        needed = training_memory_gb(
            resolved["batch_size"],
            resolved["patch_size"],
            num_input_channels=len(resolved["normalization_schemes"]),
            num_classes=num_classes,
            strides=arguments["strides"],
        )
        arguments["recompute"] = needed + GPU_CONTEXT_GB > gpu_memory_target_gb
    resolved["architecture"] = {
        "network_class_name": SEGMAFORMER.class_path,
        "arch_kwargs": arguments,
        "_kw_requires_import": [],
    }
    result = deepcopy(plans)
    result["configurations"][configuration] = resolved
    return result


def segmaformer_shape(patch_size: Sequence[int], spacing: Sequence[float]) -> dict[str, list[list[int]]]:
    """Strides and kernel sizes of the four stages and reductions of the first three, for each axis.

    The first five poolings that nnU-Net plans for such patches: stage 1 takes two of them, the others one each. Where
    nnU-Net no longer pools, or not yet, because an axis is short or its voxels are thick, the stride is 1. A kernel is
    2 stride - 1 (the paper's 7, 3, 3, 3), and as large as nnU-Net's own at that resolution at the least: 3, or 1
    along an axis whose voxels are more than twice as thick. The Mamba layers of stage 1 work at the resolution of
    stage 3 (the paper's reduction of 4).

    Args:
        patch_size: voxels along z, y, x.
        spacing: size of a voxel, in mm.
    """
    _, poolings, kernels, *_ = get_pool_and_conv_props(spacing, patch_size, MIN_FEATURE_MAP, 999)
    poolings = [*poolings[1:], *[(1, 1, 1)] * 5]
    kernels = [*kernels, *[(3, 3, 3)] * 5]
    strides, kernel_sizes = [], []
    level = 0
    for halvings in HALVINGS_OF_STAGES:
        stride = [1, 1, 1]
        for pooling in poolings[level : level + halvings]:
            stride = [so_far * factor for so_far, factor in zip(stride, pooling, strict=True)]
        strides.append(stride)
        kernel_sizes.append([max(2 * s - 1, k) for s, k in zip(stride, kernels[level], strict=True)])
        level += halvings
    reduction = [second * third for second, third in zip(strides[1], strides[2], strict=True)]
    return {"strides": strides, "kernel_sizes": kernel_sizes, "reductions": [reduction, [1, 1, 1], [1, 1, 1]]}


def _validate_configuration(resolved: dict[str, Any], configuration: str) -> None:
    if len(resolved["patch_size"]) != 3:
        raise HRMedSegError(
            f"Configuration {configuration!r} is {len(resolved['patch_size'])}D (patch size {resolved['patch_size']}). "
            f"SegMaFormer is a 3D network: use the configuration 3d_fullres, or train {configuration} with "
            f"-tr nnUNetTrainerHRMedSeg."
        )
    if resolved.get("previous_stage"):
        raise HRMedSegError(
            f"Configuration {configuration!r} is the second stage of a cascade (previous_stage: "
            f"{resolved['previous_stage']!r}). SegMaFormer has no cascade: use the configuration 3d_fullres or "
            f"3d_lowres, or train the cascade with a stock nnU-Net trainer."
        )
