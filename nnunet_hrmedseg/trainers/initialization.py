"""Start a network from an encoder file: choose the file, check that it fits, and adapt the first layer.

The plan of the configuration names the encoder (`encoder_weights`: "bundled", "none", or a file: the path of a
safetensors file or of the published SAM_PFD_10K.pth, or its name on the hub, hf://OWNER/NAME[@REVISION]/FILE). The
environment variable `HRMEDSEG_ENCODER_WEIGHTS` overrides it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_hrmedseg.architectures import HRMedSeg
from nnunet_hrmedseg.architectures.lgvit import group_depths
from nnunet_hrmedseg.errors import CheckpointError, HRMedSegError, format_names
from nnunet_hrmedseg.io.files import read_json
from nnunet_hrmedseg.io.hub import HubName
from nnunet_hrmedseg.plans.overrides import STARTED_FROM
from nnunet_hrmedseg.weights.encoder_file import (
    BUNDLED,
    ENCODER_ARGUMENTS,
    IMAGENET,
    NECK_ARGUMENTS,
    EncoderFile,
)
from nnunet_hrmedseg.weights.load import load_encoder

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "check_weights",
    "chosen_encoder",
    "initialize_encoder",
    "record",
    "recorded_by_other_folds",
]

ENVIRONMENT_VARIABLE = "HRMEDSEG_ENCODER_WEIGHTS"

_FROM_0_TO_1 = ("RGBTo01Normalization", "RescaleTo01Normalization")
_CENTERED = ("ZScoreNormalization", "CTNormalization")


def chosen_encoder(
    configuration: dict[str, Any], always: str | None = None, recorded: Mapping[str, Any] | None = None
) -> EncoderFile | None:
    """Return the encoder for a new training with this configuration, read and checked; None for random weights.

    Args:
        configuration: a resolved configuration dict of an HRMedSeg plan.
        always: the choice of the trainer, which overrides plan and environment.
        recorded: `record` of the encoder that other folds of this training started from, if there are any.

    Raises:
        CheckpointError: a file that is missing, damaged, or does not fit the network of the configuration; or a name on
            the hub that stands for another file than the one that plans or other folds record.
    """
    told_by = f"the environment variable {ENVIRONMENT_VARIABLE}"
    choice = always or os.environ.get(ENVIRONMENT_VARIABLE)
    if not choice:
        choice, told_by = configuration.get("encoder_weights", "bundled"), '"encoder_weights" in the plans'
    if choice == "none":
        return None
    try:
        file = load_encoder(BUNDLED if choice == "bundled" else choice)
        _check_fit(file, configuration["architecture"]["arch_kwargs"])
        for earlier in (configuration.get(STARTED_FROM), recorded):
            _check_unchanged(file, earlier or {})
    except HRMedSegError as error:
        raise type(error)(
            f"{error} Training was to start from {choice!r}, as {told_by} says. To start from random weights, set "
            f'{ENVIRONMENT_VARIABLE}=none, or "encoder_weights": "none" in the configuration of the plans file.'
        ) from error
    return file


def initialize_encoder(network: nn.Module, file: EncoderFile, normalization_schemes: Sequence[str]) -> list[str]:
    """Load the weights of `file` into `network.encoder` and, if it has the same layers, `network.neck`.

    The first layer is adapted to the channels and to nnU-Net's normalization of them.

    Args:
        network: HRMedSeg or HERSeg with the arguments that `chosen_encoder` checked.
        file: the encoder.
        normalization_schemes: nnU-Net's, one per input channel.

    Returns:
        lines for the log that describe each step.

    Raises:
        CheckpointError: the file does not contain the weights that its card describes.
    """
    done = [f"The encoder starts from {file.source} (sha256 {file.sha256})."]
    check_weights(file, network)
    state, own = dict(file.state), network.state_dict()
    weight, bias = "encoder.patch_embedding.proj.weight", "encoder.patch_embedding.proj.bias"
    channels = len(normalization_schemes)
    mean, std = (torch.tensor(file.normalization[statistic]) for statistic in ("mean", "std"))
    if channels != 3:
        state[weight], mean, std = adapt_channels(state[weight], channels), *_for_channels(mean, std, channels)
        done.append(f"Its first layer was adapted from 3 input channels to {channels}.")
    folded = [channel for channel, scheme in enumerate(normalization_schemes) if scheme in _FROM_0_TO_1]
    if folded:
        state[weight], state[bias] = fold_normalization(state[weight], state[bias], mean, std, folded)
        done.append(f"The normalization that it was made with was folded into its first layer for channels {folded}.")
    centered = [channel for channel, scheme in enumerate(normalization_schemes) if scheme in _CENTERED]
    if centered and file.normalization["scheme"] == "mean_std":
        natural_mean, natural_std = (torch.tensor(IMAGENET[statistic]) for statistic in ("mean", "std"))
        natural = _for_channels(natural_mean, natural_std, channels)
        state[weight], state[bias] = rescale_normalization(state[weight], state[bias], (mean, std), natural, centered)
        factors = ", ".join(f"{natural[1][channel] / std[channel]:.2f}" for channel in centered)
        done.append(
            f"It was made with images normalized by a fixed mean and divisor, and channels {centered} of each image "
            f"are normalized by their own: its first layer was rescaled (by {factors}), as for natural images."
        )
    unknown = sorted(set(normalization_schemes) - {*_FROM_0_TO_1, *_CENTERED})
    if unknown:
        done.append(f"It expects images of mean 0 and deviation 1; what {unknown} gives may be far from that.")

    parts = ["encoder."]
    neck = {name: value.shape for name, value in state.items() if name.startswith("neck.")}
    if neck == {name: value.shape for name, value in own.items() if name.startswith("neck.")}:
        parts.append("neck.")
    else:
        done.append("Its neck is built in another order than this network's: the neck starts from random weights.")
    network.load_state_dict({**own, **{k: v for k, v in state.items() if k.startswith(tuple(parts))}})
    return done


def record(file: EncoderFile | None) -> dict[str, str]:
    """Return the record of the start for the saved plans.

    It has the file, its sha256, the name on its card, and for a file on the hub the commit; or the file "none".
    """
    if file is None:
        return {"file": "none"}
    if file.hub is not None:
        where = {"file": file.hub.name, "commit": file.hub.commit}
    else:
        where = {"file": "bundled" if file.path == BUNDLED else str(file.path.absolute())}
    return {
        **where,
        "sha256": file.sha256,
        "name": str(file.card.get("name", "")),
    }


def recorded_by_other_folds(model_folder: str | os.PathLike, configuration: str) -> dict[str, Any] | None:
    """Return the record in the plans.json of a trained model's folder; None if there is none."""
    try:
        found = read_json(Path(model_folder, "plans.json"))["configurations"][configuration][STARTED_FROM]
    except (OSError, ValueError, KeyError, TypeError):  # nnU-Net will write the file again
        return None
    return found if isinstance(found, dict) else None


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Adapt the first layer's weight (C, 3, k, k), made for RGB, to another number of channels: (C, channels, k, k).

    One channel: the sum over RGB, which gives a gray image the response that it had as RGB. Others: RGB repeated, and
    rescaled so that the response keeps its size.
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, [channel % 3 for channel in range(channels)]] * (3 / channels)


def fold_normalization(
    weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor, channels: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return weight and bias with which x in 0..1 gives the response that (x - mean) / std gave; exact without padding.

    Args:
        weight: weight (C, channels, k, k) of a convolution.
        bias: bias (C,) of the convolution.
        mean: one value per channel.
        std: one value per channel.
        channels: channels to fold for; the others are unchanged.
    """
    weight, bias = weight.clone(), bias.clone()
    for channel in channels:
        weight[:, channel] /= std[channel]
        bias -= weight[:, channel].sum((1, 2)) * mean[channel]
    return weight, bias


def rescale_normalization(
    weight: Tensor,
    bias: Tensor,
    expected: tuple[Tensor, Tensor],
    typical: tuple[Tensor, Tensor],
    channels: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Return weight and bias with which z = (x - m) / s gives the response that (x - mean) / divisor gave.

    The mean m and deviation s of each image are not known; those of typical images are used instead.

    Args:
        weight: weight (C, channels, k, k) of a convolution.
        bias: bias (C,) of the convolution.
        expected: mean and divisor of each channel that the weights were made with.
        typical: mean and deviation of each channel, of the same range.
        channels: channels to rescale; the others are unchanged.
    """
    weight, bias = weight.clone(), bias.clone()
    (mean, divisor), (typical_mean, typical_std) = expected, typical
    for channel in channels:
        bias += weight[:, channel].sum((1, 2)) * (typical_mean[channel] - mean[channel]) / divisor[channel]
        weight[:, channel] *= typical_std[channel] / divisor[channel]
    return weight, bias


def _for_channels(mean: Tensor, std: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    if channels == 1:
        return mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
    order = [channel % 3 for channel in range(channels)]
    return mean[order], std[order]


def _check_fit(file: EncoderFile, arguments: dict[str, Any]) -> None:
    differing = {
        key: (file.architecture[key], arguments.get(key))
        for key in (*ENCODER_ARGUMENTS, *NECK_ARGUMENTS)
        # a neck built in another order is left out; a depth may be given as its three groups
        if key != "neck" and not _same(key, file.architecture[key], arguments.get(key))
    }
    if differing:
        differences = ", ".join(
            f"{key} {theirs!s:.100} in the file and {ours} in the plans" for key, (theirs, ours) in differing.items()
        )
        raise CheckpointError(
            f"The encoder {file.source} does not fit the network of the plans: {differences}. Set "
            f"arch_kwargs in the plans that -pl nnUNetPlannerHRMedSeg writes to those of the file, or make an encoder "
            f"of this shape with `hrmedseg encoder distill`."
        )


def _check_unchanged(file: EncoderFile, recorded: Mapping[str, Any]) -> None:
    """Raise CheckpointError if a name on the hub stood for another file when it was recorded: folds would differ."""
    if file.hub is None or recorded.get("file") != file.hub.name or recorded.get("sha256") in (None, file.sha256):
        return
    name = HubName.parse(file.hub.name)
    then = str(recorded.get("commit", "unknown"))[:100]
    raise CheckpointError(
        f"{file.hub.name} has changed since it was recorded: it has the sha256 {file.sha256} (commit {file.hub.commit})"
        f", and had {recorded['sha256']!s:.64} (commit {then}). Name the one you want by its commit: "
        f"{HubName(name.repo, then, name.path)} for the one from then, {file.hub.pinned} for the one of now."
    )


def check_weights(file: EncoderFile, network: nn.Module) -> None:
    """Check that the encoder's weights are all there, in the shapes that the network has; the first layer's for RGB.

    Raises:
        CheckpointError: the network has another encoder or none, or the file does not hold what its card describes.
    """
    own = network.state_dict()
    first = "encoder.patch_embedding.proj.weight"
    wanted = {name: tuple(value.shape) for name, value in own.items() if name.startswith("encoder.")}
    if first in wanted:
        wanted[first] = (wanted[first][0], 3, *wanted[first][2:])
    found = {name: tuple(value.shape) for name, value in file.state.items() if name.startswith("encoder.")}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong and not isinstance(network, HRMedSeg):
        raise CheckpointError(
            f"{type(network).__name__}, the network of this trainer, does not have the encoder of HRMedSeg, so it "
            f"cannot start from {file.path}: {format_names(wrong)} differ. Switch the encoder off: encoder_weights = "
            f'"none" in the class of the trainer, or {ENVIRONMENT_VARIABLE}=none for one training.'
        )
    if wrong:
        raise CheckpointError(
            f"{file.path} does not hold the weights that its card describes: {format_names(wrong)} are missing, "
            f"too many, or of another shape. Make the encoder again, or copy it from where it was made."
        )


def _same(key: str, theirs: Any, ours: Any) -> bool:
    if key == "depth" and ours is not None:
        try:
            return group_depths(theirs) == group_depths(ours)
        except (TypeError, ValueError):  # a card may say anything
            return False
    return theirs == ours
