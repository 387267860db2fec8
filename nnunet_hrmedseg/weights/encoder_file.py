"""Encoder files: the weights of LGViT and neck as safetensors, and a card in JSON beside them.

    my_encoder.safetensors    parameters and buffers under `encoder.` and `neck.`, the names that they have in HRMedSeg;
                              and under `fine_levels.` where it was made for SAM2's decoder
    my_encoder.json           the card: what network the weights fit, what images it expects, how they were made

Reading executes nothing in a file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from nnunet_hrmedseg.architectures.lgvit import group_depths
from nnunet_hrmedseg.errors import CheckpointError, format_names
from nnunet_hrmedseg.io.file_kinds import recognize_file
from nnunet_hrmedseg.io.files import read_json, write_atomically
from nnunet_hrmedseg.io.hub import HubCopy

__all__ = [
    "BUNDLED",
    "ENCODER_ARGUMENTS",
    "EncoderFile",
    "IMAGENET",
    "NECK_ARGUMENTS",
    "read_encoder_file",
    "write_encoder",
]

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Statistics of RGB images in 0..1, of ImageNet and so of natural images."""

BUNDLED = Path(__file__).parent / "hrmedseg_encoder.safetensors"
"""File of the bundled encoder."""

ENCODER_ARGUMENTS = (
    "embed_dim",
    "depth",
    "num_heads",
    "channel_interactive_layers",
    "expansion",
    "inter_gate",
    "exter_gate",
    "rotary",
)
"""Arguments of the network that decide which weights its encoder has, and what they mean."""

NECK_ARGUMENTS = ("embed_dim", "neck", "decoder_dim")
"""The same for the neck."""

_FORMAT = 1
LARGEST_WIDTH, LARGEST_DEPTH = 2**14, 2**10  # of what may be built because a file says so


@dataclass(frozen=True)
class EncoderFile:
    """An encoder file that was read and checked.

    Attributes:
        path: of the safetensors file.
        sha256: of the safetensors file.
        card: the JSON card.
        state: parameters and buffers by name, float32.
        hub: where it was downloaded from; None for a local file.
    """

    path: Path
    sha256: str
    card: dict[str, Any]
    state: dict[str, Tensor]
    hub: HubCopy | None = None

    @property
    def source(self) -> str:
        """The path of a local file; of one on the hub its name there, with the commit."""
        return self.hub.pinned if self.hub is not None else str(self.path)

    @property
    def architecture(self) -> dict[str, Any]:
        """The arguments of the network (`ENCODER_ARGUMENTS`, `NECK_ARGUMENTS`) that these weights belong to."""
        return self.card["architecture"]

    @property
    def licenses(self) -> dict[str, str]:
        """Licenses of weights, teacher and data, as far as they are known. Cards of earlier versions are read, too."""
        return self.card.get("licenses") or self.card.get("licences") or {}

    @property
    def normalization(self) -> dict[str, Any]:
        """Normalization that the first layer expects.

        It has `scheme`, "zscore" (each image by its own mean and standard deviation) or "mean_std" (all images by the
        same), and `mean` and `std`, three values each, of images in 0..1.
        """
        return self.card["normalization"]


def read_encoder_file(path: Path) -> EncoderFile:
    """Read NAME.safetensors and check it against NAME.json beside it.

    Raises:
        CheckpointError: A file is missing, is not an encoder file, or is not the one that its card describes.
    """
    card_path = path.with_suffix(".json")
    _check_files(path, card_path)
    card = _read_card(card_path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    _check_sha256(path, card_path, hashlib.sha256(content).hexdigest(), card["sha256"])
    try:
        state = {name: value.float() if value.is_floating_point() else value for name, value in load(content).items()}
    except Exception as error:  # SafetensorError, and what torch and Python raise for a wrong type or shape
        raise CheckpointError(f"{path} is not a safetensors file ({error!s:.500}). Copy it again.") from error
    wrong = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if wrong:
        raise CheckpointError(
            f"{path} has values that are not finite in {format_names(wrong)}. Copy it, or make it again."
        )
    return EncoderFile(path, card["sha256"], card, state)


def _check_files(path: Path, card_path: Path) -> None:
    for file, what in ((path, "encoder file"), (card_path, "card (JSON) of the encoder")):
        if not file.is_file():
            raise CheckpointError(
                f"There is no {what} {file}. An encoder is two files, NAME.safetensors and NAME.json, as `hrmedseg "
                f"distill` writes them: give the path of the first and keep the second beside it.{_hint(path)}"
            )
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is not an encoder file: it should end in .safetensors, as `hrmedseg encoder distill` writes, "
            f"or in .pth, as the published encoder does."
        )


def _read_card(file: Path) -> dict[str, Any]:
    try:
        card = read_json(file)
        version, _ = card["format"], card["sha256"]
        complete = _is_complete(card)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{file} is not the card of an encoder ({type(error).__name__}: {error}).") from error
    if version != _FORMAT or not complete:
        raise CheckpointError(
            f"{file} is a card of format {version!r:.100}, or not complete; this version of nnunet_hrmedseg reads "
            f"format {_FORMAT}. Update nnunet_hrmedseg, or make the encoder again."
        )
    return card


def _is_complete(card: Mapping[str, Any]) -> bool:
    """Return whether a card describes an encoder that can be built, and how images are normalized."""
    architecture = card["architecture"]
    if not architecture.keys() >= {*ENCODER_ARGUMENTS, *NECK_ARGUMENTS}:
        return False
    widths = [architecture["embed_dim"], architecture["decoder_dim"], *(architecture.get("fine_channels") or ())]
    complete = all(type(width) is int and 0 < width <= LARGEST_WIDTH for width in widths)
    complete &= sum(group_depths(architecture["depth"])) <= LARGEST_DEPTH
    complete &= {"zscore": True, "mean_std": True}[card["normalization"]["scheme"]]
    mean, std = ([float(value) for value in card["normalization"][statistic]] for statistic in ("mean", "std"))
    complete &= len(mean) == len(std) == 3 and all(map(math.isfinite, (*mean, *std))) and min(std) > 0
    return complete and all(isinstance(card.get(part) or {}, dict) for part in ("teacher", "recipe"))


def _check_sha256(path: Path, card_path: Path, found: str, recorded: object) -> None:
    if found == recorded:
        return
    kind = recognize_file(path)
    if kind is not None and "safetensors" not in kind:
        raise CheckpointError(f"{path} is {kind}.")
    raise CheckpointError(
        f"{path} has the sha256 {found}, but its card {card_path} describes a file with {recorded!s:.64}: one of "
        f"the two is damaged or belongs to another encoder. Copy both again."
    )


def _hint(path: Path) -> str:
    """Return advice if the path is a SAM in the format of transformers, or its weights."""
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.json").is_file():
        return ""
    return f" A SAM is not an encoder of HRMedSeg but a teacher: hrmedseg encoder distill --teacher {folder} ..."


def write_encoder(
    path: str | os.PathLike, state: Mapping[str, Tensor], card: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> EncoderFile:
    """Write weights and card; each appears whole or not at all. `format` and `sha256` are added to the card.

    Args:
        path: of the safetensors file to be.
        state: state dict of a network or student; what does not begin with `encoder.`, `neck.` or `fine_levels.` is
            left out.
        card: must have `architecture` and `normalization`.
        dtype: of the floating-point values in the file.

    Raises:
        CheckpointError: Values are not finite, in the file's dtype.
    """
    path = Path(path)
    kept = {}
    for name, value in state.items():
        if name.startswith(("encoder.", "neck.", "fine_levels.")):
            kept[name] = value.detach().cpu().to(dtype if value.is_floating_point() else value.dtype).contiguous()
            if not torch.isfinite(kept[name]).all():
                raise CheckpointError(f"{name} has values that are not finite as {dtype}: no encoder file was written.")
    content = save(kept)
    sha256 = hashlib.sha256(content).hexdigest()
    identity = {"format": _FORMAT, "sha256": sha256}  # last, too: the card may be that of another file
    text = json.dumps({**identity, **card, **identity}, indent=2) + "\n"
    for file, data in ((path, content), (path.with_suffix(".json"), text.encode())):
        write_atomically(file, data)
    return read_encoder_file(path)
