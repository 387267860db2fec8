"""Turn a 3D configuration of any nnU-Net plan into one of a 3D network: a pure function on the plans dict.

Everything that nnU-Net found out about the dataset is kept: spacing, patch size, batch size, normalization, resampling,
and so the preprocessed data. Only the network is replaced.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from nnunet_hrmedseg.plans.configurations import (
    architecture_entry,
    check_dimensions,
    get_spec,
    resolve_configuration,
)
from nnunet_hrmedseg.plans.memory import AUTOCAST, DEFAULT_MEMORY_TARGET_GB, GPU_CONTEXT_GB

__all__ = ["segmaformer_plans"]


def segmaformer_plans(
    plans: dict[str, Any],
    configuration: str = "3d_fullres",
    *,
    num_classes: int = 2,
    network: str = "SegMaFormer",
    gpu_memory_target_gb: float = DEFAULT_MEMORY_TARGET_GB,
) -> dict[str, Any]:
    """Return the plans with `configuration` turned into a configuration of a 3D network. The input is not changed.

    Idempotent: network arguments that a configuration of the network already has are kept; missing ones are added. All
    other configurations are kept.

    Args:
        plans: any nnU-Net v2 plans dict.
        configuration: a 3D configuration of the plans, but not the second stage of a cascade.
        num_classes: segmentation heads; used for the memory estimate.
        network: name of a 3D network in `plans.specs.NETWORKS`.
        gpu_memory_target_gb: GPU memory that training may take, in GB, before layers are recomputed in the backward
            pass. Patch and batch size do not depend on it.

    Raises:
        PlanError: unknown network; unknown, 2D or cascaded configuration.
    """
    spec = get_spec(network, 3)
    advice = f"{spec.name} is a 3D network: use 3d_fullres of nnUNetPlans."
    resolved = resolve_configuration(plans, configuration, advice=advice)
    check_dimensions(resolved, configuration, spec)
    resolved.pop("next_stage", None)  # there is no cascade to predict for

    architecture = resolved["architecture"]
    kept = deepcopy(architecture["arch_kwargs"]) if architecture["network_class_name"] == spec.class_path else {}
    shape = spec.shape(resolved["patch_size"], resolved["spacing"]) if spec.shape is not None else {}
    arguments = {**spec.arguments, **shape, **kept}
    if "recompute" in arguments and "recompute" not in kept:
        needed = spec.memory.training_gb(
            resolved["batch_size"],
            resolved["patch_size"],
            num_input_channels=len(resolved["normalization_schemes"]),
            num_classes=num_classes,
            mode=AUTOCAST,
            **{**arguments, "recompute": False},
        )
        arguments["recompute"] = needed + GPU_CONTEXT_GB > gpu_memory_target_gb
    resolved["architecture"] = architecture_entry(spec, arguments)
    result = deepcopy(plans)
    result["configurations"][configuration] = resolved
    return result
