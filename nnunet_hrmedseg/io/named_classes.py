"""The classes that a plan names by dotted path: imported and called by nnU-Net whatever they are, so looked at first.

A plan's `network_class_name` is called with its `arch_kwargs`, and those of `_kw_requires_import` are names of classes
that the network calls in turn: with `"nonlin": "os.system"` and `"nonlin_kwargs": {"command": ...}`, a plan executes
what it likes.
"""

from __future__ import annotations

import importlib.util
import pydoc
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from nnunet_hrmedseg.errors import HRMedSegError, PlanError

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

__all__ = ["check_named_classes"]


def check_named_classes(folder: Path, configuration: ConfigurationManager) -> None:
    """Check that a configuration's network and its arguments name only networks or layers of installed packages.

    Args:
        folder: that the plan came with. Modules in it, or beside it, are not imported.
        configuration: of the plan.

    Raises:
        PlanError: something else is named, or the plan does not say what it should.
    """
    network, arguments = configuration.network_arch_class_name, configuration.network_arch_init_kwargs
    imported = configuration.network_arch_init_kwargs_req_import
    if not isinstance(arguments, dict) or not isinstance(imported, list | tuple):
        raise PlanError(f"{folder}: the architecture in plans.json is not what nnU-Net writes. Copy the file again.")
    _check(folder, "network_class_name", network)
    for argument in imported:
        if not isinstance(argument, str) or argument not in arguments:
            raise PlanError(f"{folder}: plans.json names {argument!r:.100} to be imported, and has no such argument.")
        if arguments[argument] is not None:
            _check(folder, argument, arguments[argument])


def _check(folder: Path, what: str, name: Any) -> None:
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise PlanError(f"{folder}: {what} in plans.json is {name!r:.100}, which is not the name of a class.")
    if _ships_with(folder, name.partition(".")[0]):
        raise PlanError(
            f"{folder}: {what} in plans.json is {name}, which came with the model: importing it would execute a file "
            f"that you were given. If you trust it, install it as a package, outside of this folder."
        )
    try:
        found = pydoc.locate(name)
    except Exception as error:  # of any package
        raise HRMedSegError(f"{folder}: {what} in plans.json, {name}, cannot be imported ({error!s:.300}).") from error
    # what is not found is looked up by nnU-Net among its own networks, and named in its own error
    if found is not None and not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise PlanError(
            f"{folder}: {name} in plans.json is not a network or a layer of one, and stands there as {what}. It was "
            f"not called: such plans execute whatever they name. Get the model from whoever trained it."
        )


def _ships_with(folder: Path, package: str) -> bool:
    if package in sys.modules:
        return False  # imported already, from wherever: nothing new is executed
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    places = [spec.origin if spec.has_location else None, *(spec.submodule_search_locations or ())]
    beside = folder.resolve().parent
    return any(place is not None and Path(place).resolve().is_relative_to(beside) for place in places)
