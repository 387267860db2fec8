"""Read the SAM-distilled encoder that the authors of HRMedSeg publish, `pretrain_weights/SAM_PFD_10K.pth`.

It contains LGViT and neck under the names of the authors' code (github.com/xq141839/HRMedSeg). The same encoder with a
decoder, as their fine-tuning saves it, is read as well. Reading executes nothing in the file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_hrmedseg.architectures.lgvit import PATCH_SIZE, LGViT, group_depths
from nnunet_hrmedseg.architectures.neck import NECKS, Neck
from nnunet_hrmedseg.errors import CheckpointError, PlanError, SetupError, format_names
from nnunet_hrmedseg.io.checkpoints import load_checkpoint
from nnunet_hrmedseg.io.files import file_sha256, make_output_dir
from nnunet_hrmedseg.io.hub import download, is_on_hub
from nnunet_hrmedseg.weights.encoder_file import IMAGENET, LARGEST_DEPTH, LARGEST_WIDTH, EncoderFile, write_encoder
from nnunet_hrmedseg.weights.unwrapping import unwrap

__all__ = ["NORMALIZATIONS", "PUBLISHED_SUFFIXES", "import_encoder", "read_published"]

PUBLISHED_SUFFIXES = (".pth", ".pt", ".ckpt")

_MEAN, _STD = list(IMAGENET["mean"]), list(IMAGENET["std"])
NORMALIZATIONS = {
    "distillation": (_MEAN, _MEAN),  # the public distillation script divides by the mean, for student and teacher alike
    "imagenet": (_MEAN, _STD),  # the public fine-tuning script
}
"""Name -> mean and divisor of RGB images in 0..1. Which one the published file expects is not recorded in it."""

_HOW = "Give SAM_PFD_10K.pth of github.com/xq141839/HRMedSeg as it was downloaded, or a checkpoint fine-tuned from it."

_HEADS = (6, 12, 24)  # of the three groups; the number of heads does not show in the weights
_FIRST = "image_encoder.patch_embed.proj.weight"
_KNOWN = (_FIRST, "image_encoder.trunk.patch_embed.proj.weight")  # the second, of SAM2, for a better message
_BLOCK = re.compile(r"image_encoder\.layers\.([0-3])\.blocks\.(\d{1,4})\.(.+)\.(\w+)")
_CHANNEL_INTERACTIVE = {
    "conv1.c": "expand.0",
    "conv1.bn": "expand.1",
    "conv2.c": "depthwise.0",
    "conv2.bn": "depthwise.1",
    "conv3.c": "project.0",
    "conv3.bn": "project.1",
}
_TOKEN_INTERACTIVE = {
    "norm1": "norm1",
    "act_proj": "attention.exter_gate.0",
    "attn.qk": "attention.query_key",
    "attn.up_proj": "attention.value.0",
    "attn.down_proj": "attention.value.2",
    "attn.lepe": "attention.local_encoding",
    "out_proj": "attention.projection",
    "norm2": "norm2",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}
_NECK = {"0": "conv1", "1": "norm1", "2": "conv2", "3": "norm2"}
_ROTATIONS = ".attn.rope.rotations"  # a table of cosines and sines, (h, w, C/2, 2)


def read_published(path: Path, normalization: str = "distillation") -> EncoderFile:
    """Return the published encoder as an encoder file with a card, converted in memory.

    Args:
        path: SAM_PFD_10K.pth, or a checkpoint that was fine-tuned from it.
        normalization: a row of `NORMALIZATIONS`, the one that the encoder was made with.

    Returns:
        The encoder under this package's names. `path` and `sha256` are those of the source.

    Raises:
        CheckpointError: The file cannot be read, is damaged, is something else, or has weights that do not fit (named).
        PlanError: There is no such normalization.
    """
    if normalization not in NORMALIZATIONS:
        raise PlanError(f"There is no normalization {normalization!r}; there are {', '.join(NORMALIZATIONS)}.")
    checkpoint = load_checkpoint(path)
    published, _ = unwrap(path, checkpoint, _KNOWN, "encoder")
    _check_kind(path, checkpoint, published)
    parts = {name: value for name, value in published.items() if name.startswith(("image_encoder.", "neck."))}
    try:
        architecture = _architecture({name: tuple(value.shape) for name, value in parts.items()})
    except (KeyError, ValueError, ZeroDivisionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{path} does not contain the published encoder of HRMedSeg: {reason}. {_HOW}") from error
    state = _converted(path, parts, architecture)
    left_out = Counter("rotation tables" if name.endswith(_ROTATIONS) else "" for name in parts)
    left_out.update(name.partition(".")[0] for name in published.keys() - parts.keys())
    del left_out[""]
    card = _card(path, file_sha256(path), architecture, normalization, _canvas(parts), dict(sorted(left_out.items())))
    return EncoderFile(path, card["source"]["sha256"], card, state)


def import_encoder(
    source: str | Path, folder: str | Path, *, normalization: str = "distillation", overwrite: bool = False
) -> EncoderFile:
    """Write the published encoder as `encoder.safetensors` and its card `encoder.json` into a folder.

    Args:
        source: SAM_PFD_10K.pth, or a checkpoint that was fine-tuned from it; or its name on the hub (hf://...).
        folder: created if it does not exist.
        normalization: a row of `NORMALIZATIONS`, the one that the encoder was made with.
        overwrite: replace an encoder in `folder`.

    Returns:
        The encoder file that was written.

    Raises:
        CheckpointError: See `read_published`.
        SetupError: There is an encoder in `folder` already, or the folder cannot be written to.

    Examples:
        >>> from nnunet_hrmedseg import import_encoder
        >>> encoder = import_encoder("SAM_PFD_10K.pth", "sam_encoder")  # as downloaded from the authors' repository
        >>> encoder.path.name, encoder.card["teacher"]["name"]
        ('encoder.safetensors', 'SAM ViT-H')
    """
    file = Path(folder).expanduser() / "encoder.safetensors"
    existing = [str(part) for part in (file, file.with_suffix(".json")) if part.exists()]
    if existing and not overwrite:
        raise SetupError(
            f"{format_names(existing)} exist already. Give another folder, or overwrite them (--overwrite)."
        )
    copy = download(str(source)) if is_on_hub(source) else None
    published = read_published(Path(source).expanduser() if copy is None else copy.path, normalization)
    card = (
        published.card
        if copy is None
        else {**published.card, "source": {**published.card["source"], "hub": copy.pinned}}
    )
    make_output_dir(file.parent)
    try:
        return write_encoder(file, published.state, card)
    except OSError as error:
        raise SetupError(f"{file} cannot be written: {error}. Free some space, or give another folder.") from error


# ---- what the file is ------------------------------------------------------------------------------------------------


def _check_kind(path: Path, checkpoint: Mapping[Any, Any], state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError, with advice, for the checkpoints that are most easily mistaken for an encoder."""
    if "image_encoder.pos_embed" in state or any(name.startswith("image_encoder.blocks.") for name in state):
        width = next(iter(state[_FIRST].shape), "unknown") if _FIRST in state else "unknown"
        raise CheckpointError(
            f"{path} is a whole SAM (a ViT of width {width}) and not an encoder of HRMedSeg. It is a teacher. Distill "
            f"it: hrmedseg encoder distill --teacher {path} --images FOLDER -o OUTPUT."
        )
    if any(name.startswith("image_encoder.trunk.") for name in state):
        raise CheckpointError(
            f"{path} is a SAM2 in Meta's format and not an encoder of HRMedSeg. It is a teacher, from a folder in the "
            f"format of transformers: hrmedseg encoder distill --teacher FOLDER --images FOLDER -o OUTPUT."
        )
    if "network_weights" in checkpoint:
        raise CheckpointError(
            f"{path} is a checkpoint of nnU-Net and not an encoder. A training can start from the whole network: "
            f"nnUNetv2_train ... -pretrained_weights {path}. Its model folder can be a teacher "
            "of hrmedseg encoder distill."
        )
    if _FIRST not in state:
        found = _some(state or checkpoint) or "nothing"
        raise CheckpointError(
            f"{path} does not contain the published encoder of HRMedSeg: {_FIRST} is missing, and it has {found}. "
            f"{_HOW}"
        )


def _architecture(shape: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the arguments of the network from the shapes of its weights.

    Raises:
        KeyError: a weight is missing.
        ValueError: shapes from which this network cannot be built.
    """
    width, channels, *patch = _four(shape, _FIRST)
    if not 0 < width <= LARGEST_WIDTH or width % (2 * max(_HEADS)) or channels != 3 or patch != [PATCH_SIZE] * 2:
        raise ValueError(
            f"{_FIRST} has the shape {shape[_FIRST]}; it should be (width, 3, {PATCH_SIZE}, {PATCH_SIZE}), the width a "
            f"multiple of {2 * max(_HEADS)}"
        )
    blocks: list[set[str]] = [set(), set(), set(), set()]
    for name in shape:
        if match := _BLOCK.fullmatch(name):
            blocks[int(match[1])].add(match[2])
    layers, *groups = map(len, blocks)
    if not sum(groups):
        raise KeyError("image_encoder.layers.1.blocks.0")
    if layers + sum(groups) > LARGEST_DEPTH:
        raise ValueError(f"it has {layers + sum(groups)} blocks")
    first = next(group for group, size in enumerate(groups, start=1) if size)
    hidden = shape[f"image_encoder.layers.{first}.blocks.0.mlp.fc1.weight"][:1]
    if hidden[0] % width:
        raise ValueError(f"the hidden width {hidden[0]} is not a multiple of the width {width}")
    decoder_dim, _, *kernel = _four(shape, "neck.0.weight")
    orders = {first: order for order, (first, _) in NECKS.items()}
    if not 0 < decoder_dim <= LARGEST_WIDTH or kernel[0] != kernel[1] or kernel[0] not in orders:
        raise ValueError(f"neck.0.weight has the shape {shape['neck.0.weight']}")
    depth = sum(groups)
    return {
        "embed_dim": width,
        "depth": depth if group_depths(depth) == tuple(groups) else groups,
        "num_heads": list(_HEADS),
        "channel_interactive_layers": layers,
        "expansion": hidden[0] // width,
        "inter_gate": True,
        "exter_gate": True,
        "rotary": True,
        "neck": orders[kernel[0]],
        "decoder_dim": decoder_dim,
    }


def _four(shape: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...]:
    if len(shape[name]) != 4:
        raise ValueError(f"{name} has the shape {shape[name]}")
    return shape[name]


# ---- under this package's names --------------------------------------------------------------------------------------


def _converted(path: Path, parts: Mapping[str, Tensor], architecture: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights under this package's names, float32.

    Raises:
        CheckpointError: Weights are missing, unknown, of another shape or type, or not finite (named).
    """
    groups = group_depths(architecture["depth"])
    expected = _expected_state(architecture)
    theirs = {_our_name(name, groups): name for name in parts if not name.endswith(_ROTATIONS)}
    unknown = sorted(
        name for name in parts if not name.endswith(_ROTATIONS) and _our_name(name, groups) not in expected
    )
    missing = sorted(_their_name(name, groups) for name in expected.keys() - theirs.keys())
    common = {ours: parts[name] for ours, name in theirs.items() if ours in expected}
    misshapen = [
        f"{theirs[name]} {tuple(value.shape)} instead of {tuple(expected[name].shape)}"
        for name, value in common.items()
        if value.shape != expected[name].shape or not _is_plain(value)
    ]
    problems = [f"{what}: {_some(names)}" for what, names in (("missing", missing), ("unknown", unknown)) if names]
    problems += [f"of another shape or type: {format_names(sorted(misshapen))}"] if misshapen else []
    if problems:
        raise CheckpointError(
            f"{path} does not fit the published encoder of HRMedSeg. Weights {'; '.join(problems)}. {_HOW}"
        )
    state = {
        name: common[name].to(value.dtype, copy=True, memory_format=torch.contiguous_format)
        for name, value in expected.items()
    }
    wrong = sorted(theirs[name] for name, value in state.items() if not torch.isfinite(value).all())
    if wrong:
        raise CheckpointError(f"{path} has values that are not finite in {_some(wrong)}. Download it again.")
    return state


def _expected_state(architecture: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state dict of encoder and neck, of shapes and types only."""
    arguments = {name: value for name, value in architecture.items() if name not in ("neck", "decoder_dim")}
    with torch.device("meta"):
        encoder = LGViT(3, **arguments).state_dict()
        neck = Neck(architecture["embed_dim"], architecture["decoder_dim"], architecture["neck"]).state_dict()
    return {f"encoder.{name}": v for name, v in encoder.items()} | {f"neck.{name}": v for name, v in neck.items()}


def _our_name(name: str, groups: Sequence[int]) -> str | None:
    if name.startswith("image_encoder.patch_embed.proj."):
        return name.replace("image_encoder.patch_embed", "encoder.patch_embedding")
    if match := re.fullmatch(r"neck\.([0-3])\.(\w+)", name):
        return f"neck.{_NECK[match[1]]}.{match[2]}"
    match = _BLOCK.fullmatch(name)
    if match is None:
        return None
    group, block = int(match[1]), int(match[2])
    if group == 0 and match[3] in _CHANNEL_INTERACTIVE:
        return f"encoder.channel_interactive.{block}.{_CHANNEL_INTERACTIVE[match[3]]}.{match[4]}"
    if group > 0 and match[3] in _TOKEN_INTERACTIVE and block < groups[group - 1]:
        place = sum(groups[: group - 1]) + block
        return f"encoder.token_interactive.{place}.{_TOKEN_INTERACTIVE[match[3]]}.{match[4]}"
    return None


def _their_name(name: str, groups: Sequence[int]) -> str:
    """Return the published name of one of this package's weights."""
    module, _, kind = name.rpartition(".")
    if module.startswith("neck."):
        return f"neck.{dict(zip(_NECK.values(), _NECK, strict=True))[module.removeprefix('neck.')]}.{kind}"
    if module == "encoder.patch_embedding.proj":
        return f"image_encoder.patch_embed.proj.{kind}"
    _, stage, number, layer = module.split(".", 3)
    group, block = 0, int(number)
    names = _CHANNEL_INTERACTIVE
    if stage == "token_interactive":
        group, names = 1, _TOKEN_INTERACTIVE
        while block >= groups[group - 1]:
            block -= groups[group - 1]
            group += 1
    theirs = next(their for their, ours in names.items() if ours == layer)
    return f"image_encoder.layers.{group}.blocks.{block}.{theirs}.{kind}"


def _some(names: Iterable[Any]) -> str:
    """Return a few names, each shortened: a file may contain any."""
    return format_names([str(name)[:100] for name in names])


def _is_plain(value: Tensor) -> bool:
    """Return whether these are real numbers that are all in the file: an expanded tensor could need any memory."""
    if value.layout != torch.strided or value.is_complex() or value.is_quantized:
        return False
    return value.untyped_storage().nbytes() >= value.numel() * value.element_size()


# ---- the card --------------------------------------------------------------------------------------------------------


def _canvas(parts: Mapping[str, Tensor]) -> list[int]:
    """Return height and width in pixels of the images that it was made for, as the table of rotations shows."""
    table = next((value for name, value in parts.items() if name.endswith(_ROTATIONS)), None)
    grid = tuple(table.shape[:2]) if table is not None and table.ndim == 4 else (64, 64)
    return [side * PATCH_SIZE for side in grid]


def _card(
    path: Path,
    sha256: str,
    architecture: Mapping[str, Any],
    normalization: str,
    canvas: list[int],
    left_out: Mapping[str, int],
) -> dict[str, Any]:
    mean, divisor = NORMALIZATIONS[normalization]
    # with a decoder beside it, the encoder was trained on with that decoder, and SAM's cannot read it any more
    fine_tuned = bool(left_out.keys() - {"rotation tables"})
    name = "SAM ViT-H on 10,000 images of SA-1B, distilled by the authors of HRMedSeg"
    return {
        "name": f"{name}, then fine-tuned" if fine_tuned else name,
        "made_by": "hrmedseg encoder import",
        "architecture": dict(architecture),
        "normalization": {"scheme": "mean_std", "mean": mean, "std": divisor, "assumed": normalization},
        "source": {
            "file": path.name,
            "sha256": sha256,
            "published_at": "https://github.com/xq141839/HRMedSeg/tree/main/pretrain_weights",
            "left_out": dict(left_out),
        },
        "teacher": {
            "kind": "sam, then fine-tuned" if fine_tuned else "sam",
            "name": "SAM ViT-H, then fine-tuned with another decoder" if fine_tuned else "SAM ViT-H",
            "variant": "ViT-H",
            "license": "Apache-2.0",
        },
        "data": {"sources": {"SA-1B": 10000}},
        "licenses": {
            "weights": "Apache-2.0",
            "teacher": "Apache-2.0",
            "data": "SA-1B Dataset Research License (research only)",
        },
        "recipe": {"objective": "mean squared error of the embedding", "canvas": canvas, "fit": "stretch"},
        "assumed": "Teacher, data and normalization are what the authors state; the file itself does not record them.",
    }
