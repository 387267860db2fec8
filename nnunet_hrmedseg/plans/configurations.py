"""Read and check a configuration of a plan, and write a network into it: shared by 2D and 3D networks."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_hrmedseg.errors import PlanError
from nnunet_hrmedseg.plans.plan_check import check_configuration, check_plans, plans_file
from nnunet_hrmedseg.plans.specs import NETWORKS, NetworkSpec, find_spec

__all__ = ["architecture_entry", "check_dimensions", "get_spec", "resolve_configuration", "user_arguments"]

_CONFIGURATIONS = {
    2: "the configuration 2d, which processes volumes slice by slice",
    3: "the configuration 3d_fullres or 3d_lowres",
}
_TRAINERS = {2: "nnUNetTrainerHRMedSeg", 3: "nnUNetTrainerSegMaFormer"}


def resolve_configuration(plans: dict[str, Any], configuration: str, *, advice: str) -> dict[str, Any]:
    """Return the configuration as one flat dict: `inherits_from` followed, older formats of nnU-Net converted.

    Raises:
        PlanError: there is no such configuration (the message ends with `advice`), or it has a value of a wrong type.
    """
    check_plans(plans)
    available = list(plans["configurations"])
    if configuration not in available:
        raise PlanError(
            f"The plans {plans.get('plans_name')!r} have no configuration {configuration!r}; they have {available}. "
            f"{advice}"
        )
    try:
        resolved = deepcopy(PlansManager(deepcopy(plans)).get_configuration(configuration).configuration)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise PlanError(
            f"nnU-Net cannot read the configuration {configuration!r} of the plans {plans.get('plans_name')!r} "
            f"({type(error).__name__}: {error}). Correct it in {plans_file(plans)}, or plan again."
        ) from error
    resolved.pop("inherits_from", None)
    check_configuration(plans, configuration, resolved)
    return resolved


def get_spec(name: str, dimensions: int) -> NetworkSpec:
    """Return the spec of a network.

    Raises:
        PlanError: there is no such network with this number of dimensions.
    """
    spec = NETWORKS.get(name)
    if spec is None or spec.dimensions != dimensions:
        known = [each.name for each in NETWORKS.values() if each.dimensions == dimensions]
        raise PlanError(f"There is no {dimensions}D network {name!r}. Choose one of {', '.join(known)}.")
    return spec


def check_dimensions(resolved: Mapping[str, Any], configuration: str, spec: NetworkSpec) -> None:
    """Check that a configuration is one that the network can be trained with.

    Args:
        resolved: the configuration.
        configuration: its name.
        spec: the network.

    Raises:
        PlanError: the configuration has another number of dimensions, or is the second stage of a cascade.
    """
    dimensions = len(resolved["patch_size"])
    if resolved.get("previous_stage"):
        raise PlanError(
            f"Configuration {configuration!r} is the second stage of a cascade (previous_stage: "
            f"{resolved['previous_stage']!r}). {spec.name} has no cascade: use {_CONFIGURATIONS[spec.dimensions]}, or "
            f"train the cascade with a stock nnU-Net trainer."
        )
    if dimensions != spec.dimensions:
        raise PlanError(
            f"Configuration {configuration!r} is {dimensions}D (patch size {resolved['patch_size']}). {spec.name} is a "
            f"{spec.dimensions}D network: use {_CONFIGURATIONS[spec.dimensions]}, or train {configuration} with "
            f"-tr {_TRAINERS[5 - spec.dimensions]} or a stock nnU-Net trainer."
        )


def user_arguments(architecture: Mapping[str, Any], spec: NetworkSpec) -> dict[str, Any]:
    """Return the network arguments that a user changed in a plan, and that `spec` has as well.

    Args:
        architecture: the `architecture` entry of the plan; it may name another network of the same kind.
        spec: the network that the plan is going to have.
    """
    current = find_spec(architecture["network_class_name"])
    if current is None or current.dimensions != spec.dimensions:
        return {}
    defaults, known = current.arguments, spec.arguments
    return {
        name: deepcopy(value)
        for name, value in architecture["arch_kwargs"].items()
        if (current is spec or name in known) and (name not in defaults or defaults[name] != value)
    }


def architecture_entry(spec: NetworkSpec, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `architecture` entry of a plan: the network, and its defaults updated with `arguments`."""
    return {
        "network_class_name": spec.class_path,
        "arch_kwargs": {**spec.arguments, **arguments},
        "_kw_requires_import": [],
    }
