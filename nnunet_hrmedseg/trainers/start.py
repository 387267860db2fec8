"""Check the start of a new training before any data is created: the network, and `-pretrained_weights`."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import nn

from nnunet_hrmedseg.errors import CheckpointError, PlanError, format_shape
from nnunet_hrmedseg.io.files import file_sha256
from nnunet_hrmedseg.nnunet_versions import build_network
from nnunet_hrmedseg.plans.plan_check import plans_file
from nnunet_hrmedseg.plans.trained_with import check_folds

__all__ = ["check_pretrained_weights", "checked_network", "load_as_nnunet_does"]

_OF_CLASSES = ".seg_layers."  # in names of weights that nnU-Net does not take over


def checked_network(trainer: nnUNetTrainer) -> nn.Module:
    """Build the network of a trainer on the CPU, without changing torch's random state.

    Raises:
        PlanError: the arguments in the plans do not fit together, or the folder of the model has folds that were
            trained with other plans.
    """
    plans, configuration = trainer.plans_manager, trainer.configuration_manager
    check_folds(Path(trainer.output_folder_base), trainer.fold, plans.plans, trainer.configuration_name)
    channels = determine_num_input_channels(plans, configuration, trainer.dataset_json)
    try:
        with torch.random.fork_rng(devices=[]):
            return build_network(
                type(trainer), plans, configuration, channels, trainer.label_manager.num_segmentation_heads, False
            )
    except (TypeError, ValueError) as error:
        raise PlanError(
            f"The network of configuration {trainer.configuration_name!r} cannot be built: {error}. Correct its "
            f"arch_kwargs in {plans_file(plans.plans)}."
        ) from error


def check_pretrained_weights(file: str, network: nn.Module, channels: int) -> dict[str, str]:
    """Check that nnU-Net can load a whole network from a file.

    Args:
        file: as given to `-pretrained_weights`.
        network: that the weights are for.
        channels: image channels that `network` takes, for the message.

    Returns:
        the record of the start for the saved plans: the file, its sha256, and a description.

    Raises:
        CheckpointError: there is no such file, it is not a checkpoint of nnU-Net, or it is of another network or of
            another number of channels.
    """
    if not Path(file).is_file():
        raise CheckpointError(
            f"-pretrained_weights {file} does not exist. Give a checkpoint, such as checkpoint_final.pth."
        )
    try:
        checkpoint = load_as_nnunet_does(file)
        weights = {str(name): tuple(value.shape) for name, value in checkpoint["network_weights"].items()}
    except Exception as error:  # torch and pickle raise all kinds of errors for other files
        raise CheckpointError(
            f"-pretrained_weights {file} is not a checkpoint of nnU-Net v2 ({type(error).__name__}). Give the "
            f"checkpoint_final.pth of a whole trained network. An encoder file (.safetensors) is given by the "
            f"environment variable HRMEDSEG_ENCODER_WEIGHTS instead."
        ) from error
    own = {name: tuple(value.shape) for name, value in network.state_dict().items() if _OF_CLASSES not in name}
    wrong = [name for name, shape in own.items() if weights.get(name) != shape]
    if wrong:
        theirs = "missing" if wrong[0] not in weights else format_shape(weights[wrong[0]])
        raise CheckpointError(
            f"-pretrained_weights {file} does not fit: it is of {_described(checkpoint)}, and this training is of "
            f"{type(network).__name__} with {_images(channels)}. The file has to be of the same network with the same "
            f"arch_kwargs and number of image channels, but {len(wrong)} of {len(own)} weights are missing or of "
            f"another shape, such as {wrong[0]} ({theirs} in the file, {format_shape(own[wrong[0]])} here). To "
            f"start from its encoder alone, write an encoder file and give it by HRMEDSEG_ENCODER_WEIGHTS."
        )
    return {"file": str(Path(file).absolute()), "sha256": file_sha256(Path(file)), "name": _described(checkpoint)}


def load_as_nnunet_does(file: str) -> dict[str, Any]:
    """Load a checkpoint on the CPU. Like nnU-Net, which loads it afterwards, this executes code in the file."""
    return torch.load(file, map_location="cpu", weights_only=False, mmap=zipfile.is_zipfile(file))


def _described(checkpoint: Mapping[str, Any]) -> str:
    """Describe a checkpoint by network, channels, dataset and trainer, as far as it holds them."""
    trainer = str(checkpoint.get("trainer_name", "an unknown trainer"))
    try:
        plans, configuration = (checkpoint["init_args"][name] for name in ("plans", "configuration"))
        resolved = plans["configurations"][configuration]
        network = resolved["architecture"]["network_class_name"].rpartition(".")[2]
        channels = len(resolved["normalization_schemes"])
        return f"{network} with {_images(channels)} ({plans['dataset_name']}, {trainer})"
    except (AttributeError, KeyError, TypeError):
        return f"a network of {trainer}"


def _images(channels: int) -> str:
    return f"{channels} image channel{'' if channels == 1 else 's'}"
