"""The networks that a plan can name. A `NetworkSpec` makes a network known to everything that works with plans.

Plans, memory estimates, trainers, `hrmedseg benchmark`, `hrmedseg compare` and `hrmedseg export` read it. A network
class is named by its dotted path and imported when its arguments are needed: this module does not import torch.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any

from nnunet_hrmedseg.errors import PlanError
from nnunet_hrmedseg.plans.hrmedseg_memory import HRMedSegMemory
from nnunet_hrmedseg.plans.memory import MemoryModel
from nnunet_hrmedseg.plans.segmaformer import SegMaFormerMemory, segmaformer_shape

__all__ = ["NETWORKS", "NetworkSpec", "arguments_of", "find_spec", "register_network", "registering_modules"]


@dataclass(frozen=True, eq=False)
class NetworkSpec:
    """A network that plans can name.

    The constructor of the class takes `input_channels` and `num_classes`, then keyword arguments with defaults that are
    JSON values. Those keyword arguments, except `deep_supervision`, are the `arch_kwargs` of a plan.

    Attributes:
        name: short name, which a trainer has as `network_name`.
        network: the class, or its dotted path. nnU-Net imports it to build the network.
        dimensions: 2 for a network that sees whole images on a canvas, 3 for one that sees patches of volumes.
        memory: estimate of the memory of training.
        trainer: the trainer whose loss the network is trained with, or its dotted path; for `hrmedseg benchmark`.
        title: name in tables; default: `name`.
        defaults: values in new plans that differ from the constructor's defaults.
        shape: function of patch size and spacing that returns the arguments that follow from them; default: none do.
    """

    name: str
    network: str | type
    dimensions: int
    memory: MemoryModel
    trainer: str | type
    title: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    shape: Callable[[Sequence[int], Sequence[float]], dict[str, Any]] | None = None

    @property
    def class_path(self) -> str:
        """The dotted path by which a plan names the network."""
        return self.network if isinstance(self.network, str) else f"{REGISTERED}.{self.name}"

    @property
    def arguments(self) -> dict[str, Any]:
        """All arguments that a plan can give the network, with their defaults, as JSON values.

        Raises:
            PlanError: the class cannot be imported, or its constructor is not as described above.
        """
        return deepcopy({**self._constructor_arguments, **self.defaults})

    @cached_property
    def _constructor_arguments(self) -> dict[str, Any]:
        return _constructor_arguments(self.load_network(), self.class_path)

    def load_network(self) -> Any:
        """Return the network class.

        Raises:
            PlanError: it cannot be imported.
        """
        return _load(self.network)

    def load_trainer(self) -> Any:
        """Return the trainer class.

        Raises:
            PlanError: it cannot be imported.
        """
        return _load(self.trainer)


REGISTERED = "nnunet_hrmedseg.plans.registered"  # module in which plans find registered classes

_TRAINERS = "nnunet_hrmedseg.trainers"

NETWORKS: dict[str, NetworkSpec] = {
    spec.name: spec
    for spec in (
        NetworkSpec(
            name="HRMedSeg",
            network="nnunet_hrmedseg.architectures.HRMedSeg",
            dimensions=2,
            memory=HRMedSegMemory(),
            trainer=f"{_TRAINERS}.hrmedseg.nnUNetTrainerHRMedSeg",
        ),
        NetworkSpec(
            name="HERSeg",
            network="nnunet_hrmedseg.architectures.HERSeg",
            dimensions=2,
            memory=HRMedSegMemory(),
            trainer=f"{_TRAINERS}.hrmedseg.nnUNetTrainerHERSeg",
            title="HER-Seg",
        ),
        NetworkSpec(
            name="SegMaFormer",
            network="nnunet_hrmedseg.architectures.SegMaFormer",
            dimensions=3,
            memory=SegMaFormerMemory(),
            trainer=f"{_TRAINERS}.segmaformer.nnUNetTrainerSegMaFormer",
            shape=segmaformer_shape,
        ),
    )
}
"""The networks by name. `register_network` adds to it."""

_OWN = frozenset(NETWORKS)


def register_network(spec: NetworkSpec) -> NetworkSpec:
    """Make a network known, and return its spec.

    Call it in the module that defines the trainer: nnU-Net imports that module for training and prediction alike. A
    network that was registered under the same name before is replaced.

    Raises:
        PlanError: the name is that of a network of this package.
    """
    if spec.name in _OWN:
        raise PlanError(f"The name {spec.name!r} is taken by a network of nnunet_hrmedseg. Choose another name.")
    NETWORKS[spec.name] = spec
    return spec


def registering_modules() -> list[str]:
    """Return the modules whose import registers the networks that are not of this package: those of their trainers."""
    trainers = [spec.trainer for name, spec in NETWORKS.items() if name not in _OWN]
    return sorted({path.rpartition(".")[0] if isinstance(path, str) else path.__module__ for path in trainers})


def find_spec(class_path: str | None) -> NetworkSpec | None:
    """Return the spec of the network with this dotted path; None if the network is not known."""
    return next((spec for spec in NETWORKS.values() if spec.class_path == class_path), None)


def arguments_of(class_path: str) -> dict[str, Any] | None:
    """Return all arguments of the network with this dotted path, with their defaults; None if it is not known."""
    spec = find_spec(class_path)
    return None if spec is None else spec.arguments


def _load(path: str | type) -> Any:
    if not isinstance(path, str):
        return path
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise PlanError(f"{path} cannot be imported ({error}). Is its package installed?") from error


def _constructor_arguments(cls: type, path: str) -> dict[str, Any]:
    """Return the keyword arguments of a class with their defaults; those of its base class where it passes them on."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        _, *parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        named = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        own = {p.name: p.default for p in named if p.name not in ("input_channels", "num_classes", "deep_supervision")}
        found = {**own, **found}
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    try:
        return json.loads(json.dumps(found))
    except TypeError as error:
        raise PlanError(
            f"The arguments of {path} cannot be written into a plan ({error}). Each one needs a default that is a "
            f"number, a text, true, false, null, or a list of these."
        ) from error
