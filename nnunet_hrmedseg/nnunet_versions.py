"""The supported releases of nnU-Net, and the differences between them.

nnU-Net's minor releases move functions and change their arguments. Everything that depends on the release is in this
module. It checks which functions exist, not the version number.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from importlib import import_module
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet

from nnunet_hrmedseg.errors import PlanError, SetupError

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
    from torch import nn

__all__ = [
    "SUPPORTED",
    "build_network",
    "find_trainer",
    "full_dataset_name",
    "given_pretrained_weights",
    "nnunet_folder",
    "nnunet_folders",
    "network_builder",
    "required_nnunet_folder",
    "warn_outside_supported",
]

SUPPORTED = ">=2.6,<3"
"""Versions of nnunetv2, as in setup.cfg."""


@cache
def warn_outside_supported() -> None:
    """Warn once per process if the installed nnU-Net is not a supported release."""
    try:
        installed = importlib.metadata.version("nnunetv2")
        supported = SpecifierSet(SUPPORTED).contains(installed, prereleases=True)
    except Exception:  # a copy of nnU-Net without a version number, or with an unusual one
        return
    if not supported:
        warnings.warn(
            f"nnunetv2 {installed} is installed, but nnunet_hrmedseg supports {SUPPORTED}: its trainers may fail. The "
            f'trainers of nnU-Net are not affected. To fix it: pip install "nnunetv2{SUPPORTED}"',
            stacklevel=2,
        )


def find_trainer(name: str) -> type[nnUNetTrainer]:
    """Return the trainer class of this name, wherever nnU-Net itself finds it.

    Raises:
        RuntimeError: there is no such class.
        AssertionError: the class is not a trainer.
    """
    try:
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    except ModuleNotFoundError:  # before 2.8
        package = import_module("nnunetv2.training.nnUNetTrainer")
        find_class = import_module("nnunetv2.utilities.find_class_by_name").recursive_find_python_class
        trainer = find_class(package.__path__[0], name, package.__name__)
        if trainer is None:
            raise RuntimeError(f"Could not find requested nnunet trainer {name} in {package.__name__}") from None
        return trainer
    return recursive_find_trainer_class_by_name(name)


def build_network(
    trainer: type[nnUNetTrainer],
    plans: PlansManager,
    configuration: ConfigurationManager,
    input_channels: int,
    output_channels: int,
    deep_supervision: bool,
) -> nn.Module:
    """Build the network of a trainer as nnU-Net does, with random weights."""
    build = trainer.build_network_architecture
    described: tuple
    if "plans_manager" in inspect.signature(build).parameters:
        described = plans, configuration
    else:  # before 2.7, and trainers that were written then
        described = (
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
        )
    return build(*described, input_channels, output_channels, enable_deep_supervision=deep_supervision)


def nnunet_folder(name: str) -> str | None:
    """Return one of nnU-Net's folders, from the environment or from its paths module.

    Args:
        name: nnUNet_raw, nnUNet_preprocessed or nnUNet_results.

    Returns:
        None if it is not set.
    """
    from nnunetv2 import paths

    value = getattr(paths, name)  # since 2.8, an object that reads the environment when it is asked
    return (os.fspath(value) if value else None) or os.environ.get(name) or None


def required_nnunet_folder(name: str) -> str:
    """Return one of nnU-Net's folders, which must be set; see `nnunet_folder`.

    Raises:
        SetupError: it is not set.
    """
    folder = nnunet_folder(name)
    if folder is None:
        raise SetupError(f"The environment variable {name} is not set. Set it to nnU-Net's folder.")
    return folder


def full_dataset_name(dataset: str | int) -> str:
    """Return the full name of a dataset, such as Dataset007_Polyps, from its name or number.

    Raises:
        PlanError: there is no such dataset in any of nnU-Net's folders.
    """
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    try:
        return maybe_convert_to_dataset_name(int(dataset) if str(dataset).isdigit() else str(dataset))
    except RuntimeError as error:
        raise PlanError(f"-d {dataset}: {error}") from None


def network_builder(
    check: Callable[[PlansManager, ConfigurationManager], None], finish: Callable[[nn.Module], None]
) -> Callable[..., nn.Module]:
    """Return nnU-Net's `build_network_architecture` for a trainer, with a check before it and a step after it.

    Args:
        check: called with the plans before the network is built. nnU-Net before 2.7 does not pass the plans, so there
            nothing is checked.
        finish: called with the network.
    """
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    build = nnUNetTrainer.build_network_architecture
    signature = inspect.signature(build)

    @wraps(build)  # keeps the signature, which nnU-Net inspects
    def build_checked(*arguments, **named):
        if "plans_manager" in signature.parameters:
            given = signature.bind(*arguments, **named).arguments
            check(given["plans_manager"], given["configuration_manager"])
        network = build(*arguments, **named)
        finish(network)
        return network

    return build_checked


def given_pretrained_weights() -> str | None:
    """Return the file of `-pretrained_weights` that nnU-Net is about to load for a new training, if any.

    nnU-Net does not tell its trainers: it initializes the trainer and loads the file in the function
    `maybe_load_checkpoint`, among whose callees this one has to be called.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "maybe_load_checkpoint":
            given = frame.f_locals
            loaded = given.get("continue_training") or given.get("validation_only")
            return None if loaded else given.get("pretrained_weights_file")
        frame = frame.f_back
    return None


_TEXT = (str, type(None))


@contextmanager
def nnunet_folders(**folders: str | os.PathLike) -> Iterator[None]:
    """Set nnU-Net's folders within a context, in this process: nnUNet_raw, nnUNet_preprocessed, nnUNet_results."""
    before = {name: os.environ.get(name) for name in folders}
    # before 2.8, each module has the folders as text, as they were when it was imported
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("nnunetv2.")]
    frozen = [(m, name, vars(m)[name]) for m in modules for name in folders if isinstance(vars(m).get(name, 0), _TEXT)]
    for name, folder in folders.items():
        os.environ[name] = os.fspath(folder)
    for module, name, _ in frozen:
        setattr(module, name, os.environ[name])
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        for module, name, value in frozen:
            setattr(module, name, value)
