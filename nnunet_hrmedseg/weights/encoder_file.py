"""Encoder files: the weights of LGViT and neck as safetensors, and a card in JSON beside them.

    my_encoder.safetensors    parameters and buffers under `encoder.` and `neck.`, the names that they have in HRMedSeg;
                              and under `fine_levels.` where it was made for SAM2's decoder
    my_encoder.json           the card: what network the weights fit, what images it expects, how they were made

The published encoder of HRMedSeg's authors (a .pth) is read like one of these. Reading executes nothing in a file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from nnunet_hrmedseg.architectures.lgvit import group_depths
from nnunet_hrmedseg.errors import HRMedSegError, format_names
from nnunet_hrmedseg.io.file_kinds import recognize_file
from nnunet_hrmedseg.io.files import read_json, write_atomically
from nnunet_hrmedseg.io.hub import HubCopy, download, is_on_hub

__all__ = [
    "BUNDLED",
    "ENCODER_ARGUMENTS",
    "EncoderFile",
    "IMAGENET",
    "NECK_ARGUMENTS",
    "read_encoder",
    "write_encoder",
]

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Statistics of RGB images in 0..1, of ImageNet and so of natural images."""

BUNDLED = Path(__file__).parent / "hrmedseg_encoder.safetensors"
"""The encoder that travels with the package."""

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
PUBLISHED_SUFFIXES = (".pth", ".pt", ".ckpt")
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
    def normalization(self) -> dict[str, Any]:
        """What the first layer expects: `scheme`, "zscore" (each image by its own mean and deviation) or "mean_std"
        (all images by the same), and `mean` and `std`, three values each, of images in 0..1."""
        return self.card["normalization"]


def read_encoder(path: str | os.PathLike) -> EncoderFile:
    """Read an encoder file and check it against its card.

    Args:
        path: NAME.safetensors with NAME.json beside it; or the published SAM_PFD_10K.pth, which is converted in memory;
            or the name of either on the hub, hf://OWNER/NAME[@REVISION]/FILE.

    Raises:
        HRMedSegError: a file that is missing, is not an encoder file, or is not the one that its card describes; see
            also `hub.download`.
    """
    if is_on_hub(path):
        copy = _download(str(path))
        return replace(read_encoder(copy.path), hub=copy)
    path = Path(path)
    if path.suffix in PUBLISHED_SUFFIXES and path.is_file():
        from nnunet_hrmedseg.weights.published import read_published  # it imports this module

        return read_published(path)
    card_path = path.with_suffix(".json")
    for file, what in ((path, "encoder file"), (card_path, "card (JSON) of the encoder")):
        if not file.is_file():
            raise HRMedSegError(
                f"There is no {what} {file}. An encoder is two files, NAME.safetensors and NAME.json, as `hrmedseg "
                f"distill` writes them: give the path of the first and keep the second beside it.{_hint(path)}"
            )
    if path.suffix != ".safetensors":
        raise HRMedSegError(
            f"{path} is not an encoder file: it should end in .safetensors, as `hrmedseg distill` writes, "
            f"or in .pth, as the published encoder does."
        )
    try:
        card = read_json(card_path)
        version, sha256 = card["format"], card["sha256"]
        architecture = card["architecture"]
        complete = architecture.keys() >= {*ENCODER_ARGUMENTS, *NECK_ARGUMENTS}
        if complete:
            fine = architecture.get("fine_channels") or ()
            widths = [architecture["embed_dim"], architecture["decoder_dim"], *fine]
            complete = all(type(width) is int and 0 < width <= LARGEST_WIDTH for width in widths)
            complete &= sum(group_depths(architecture["depth"])) <= LARGEST_DEPTH
        complete &= {"zscore": True, "mean_std": True}[card["normalization"]["scheme"]]
        mean, std = ([float(value) for value in card["normalization"][statistic]] for statistic in ("mean", "std"))
        complete &= len(mean) == len(std) == 3 and all(map(math.isfinite, (*mean, *std))) and min(std) > 0
        complete &= all(isinstance(card.get(part) or {}, dict) for part in ("teacher", "recipe"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise HRMedSegError(f"{card_path} is not the card of an encoder ({type(error).__name__}: {error}).") from error
    if version != _FORMAT or not complete:
        raise HRMedSegError(
            f"{card_path} is a card of format {version!r:.100}, or not whole; this version of nnunet_hrmedseg reads "
            f"format {_FORMAT}. Update nnunet_hrmedseg, or make the encoder again."
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise HRMedSegError(f"{path} cannot be read: {error}.") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        kind = recognize_file(path)
        if kind is not None and "safetensors" not in kind:
            raise HRMedSegError(f"{path} is {kind}.")
        raise HRMedSegError(
            f"{path} has the sha256 {found}, but its card {card_path} describes a file with {sha256!s:.64}: one of "
            f"the two is damaged or belongs to another encoder. Copy both again."
        )
    try:
        state = {
            name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in load(content).items()
        }
    except Exception as error:  # SafetensorError, and of torch and Python what a type or a shape that is none raises
        raise HRMedSegError(f"{path} is no safetensors file ({error!s:.500}). Copy it again.") from error
    wrong = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if wrong:
        raise HRMedSegError(
            f"{path} has values that are not finite in {format_names(wrong)}. Copy it, or make it again."
        )
    return EncoderFile(path, found, card, state)


def _hint(path: Path) -> str:
    """Return advice if the path is a SAM in the format of transformers, or its weights."""
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.json").is_file():
        return ""
    return f" A SAM is not an encoder of HRMedSeg but a teacher: hrmedseg distill --teacher {folder} ..."


def _download(name: str) -> HubCopy:
    """Return the local copy of an encoder on the hub, beside its card if it has one, both of the same commit."""
    if not name.endswith(".safetensors"):
        return download(name)
    # the card first: a large file that is not an encoder is not downloaded
    card = download(f"{name.removesuffix('.safetensors')}.json")
    weights = download(f"{card.pinned.removesuffix('.json')}.safetensors")
    return HubCopy(name, card.commit, weights.path)


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
        HRMedSegError: values that are not finite, in the file's dtype.
    """
    path = Path(path)
    kept = {}
    for name, value in state.items():
        if name.startswith(("encoder.", "neck.", "fine_levels.")):
            kept[name] = value.detach().cpu().to(dtype if value.is_floating_point() else value.dtype).contiguous()
            if not torch.isfinite(kept[name]).all():
                raise HRMedSegError(f"{name} has values that are not finite as {dtype}: no encoder file was written.")
    content = save(kept)
    sha256 = hashlib.sha256(content).hexdigest()
    identity = {"format": _FORMAT, "sha256": sha256}  # last, too: the card may be that of another file
    text = json.dumps({**identity, **card, **identity}, indent=2) + "\n"
    for file, data in ((path, content), (path.with_suffix(".json"), text.encode())):
        write_atomically(file, data)
    return read_encoder(path)
