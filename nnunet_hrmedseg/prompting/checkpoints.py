"""Read prompt encoder and mask decoder from the files of SAM: Meta's .pth, MobileSAM's, or a folder of transformers.

Nothing that a file contains is executed, and nothing of its image encoder is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunet_hrmedseg.errors import CheckpointError, format_names, summarize_error
from nnunet_hrmedseg.io.checkpoints import load_checkpoint, weight_names
from nnunet_hrmedseg.io.files import read_json
from nnunet_hrmedseg.io.hub import local_path
from nnunet_hrmedseg.teachers.loading import GRID, numbers_of_config
from nnunet_hrmedseg.teachers.sam_weights import sam_weights
from nnunet_hrmedseg.teachers.weight_folder import find_weights

__all__ = ["DecoderFile", "WHERE_FROM", "read_decoder"]

WHERE_FROM = (
    "Give --sam the SAM that the encoder was distilled from: Meta's file of the segment-anything repository "
    "(sam_vit_h_4b8939.pth, sam_vit_l_0b3195.pth or sam_vit_b_01ec64.pth), MobileSAM's mobile_sam.pt, or a folder in "
    "the format of transformers (config.json and model.safetensors, SAM, SAM2 or SAM2.1)."
)

PARTS = ("prompt_encoder.", "mask_decoder.", "shared_image_embedding.", "no_memory_embedding")
KINDS = {"sam": "sam", "sam2": "sam2", "sam2_video": "sam2"}  # model_type in config.json -> kind
CONFIG = "config.json"
NATIVE_CANVAS = 1024

POSITIONS = ("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding")

RENAMES = (
    (r"pe_layer\.positional_encoding_gaussian_matrix", r"shared_embedding.positional_embedding"),
    (r"\.point_embeddings\.", r".point_embed."),
    (r"\.mask_downscaling\.0\.", r".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", r".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", r".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", r".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", r".mask_embed.conv3."),
    (r"\.output_upscaling\.0\.", r".upscale_conv1."),
    (r"\.output_upscaling\.1\.", r".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", r".upscale_conv2."),
    (r"\.norm(\d|_final_attn)\.", r".layer_norm\1."),
    # the three-layer MLPs of masks and scores
    (r"(iou_prediction_head|hypernetworks_mlps\.\d+)\.layers\.0\.", r"\1.proj_in."),
    (r"(iou_prediction_head|hypernetworks_mlps\.\d+)\.layers\.1\.", r"\1.layers.0."),
    (r"(iou_prediction_head|hypernetworks_mlps\.\d+)\.layers\.2\.", r"\1.proj_out."),
)
"""From the names of segment-anything to those of transformers, in this order."""


@dataclass(frozen=True)
class DecoderFile:
    """Prompt encoder and mask decoder as they were read.

    Attributes:
        path: of the file or folder.
        kind: "sam" or "sam2".
        canvas: side in pixels of the images that it was trained on.
        prompt_encoder, mask_decoder: the arguments of transformers' configurations.
        state: weights under the names of transformers, float32.
        note: what the user should know about how they were read; empty if nothing.
    """

    path: Path
    kind: str
    canvas: int
    prompt_encoder: dict[str, Any]
    mask_decoder: dict[str, Any]
    state: dict[str, Tensor]
    note: str = ""


def read_decoder(path: str | os.PathLike | None) -> DecoderFile:
    """Read prompt encoder and mask decoder from a file or folder of any known kind.

    Raises:
        CheckpointError: None given, nothing there, damaged, or something else.
    """
    if path is None:
        raise CheckpointError(f"Prompts are read by SAM's own prompt encoder and mask decoder. {WHERE_FROM}")
    path = local_path(path).expanduser()
    if not path.exists():
        raise CheckpointError(f"There is no SAM at {path}: no such file or folder. {WHERE_FROM}")
    if path.suffix == ".safetensors":
        raise CheckpointError(
            f"{path} cannot be --sam: of a SAM in the format of transformers give the folder; an encoder of `hrmedseg "
            f"distill` goes to --encoder. {WHERE_FROM}"
        )
    return _from_folder(path) if path.is_dir() else _from_checkpoint(path)


def _from_checkpoint(path: Path) -> DecoderFile:
    checkpoint = load_checkpoint(path)
    weights, note = sam_weights(path, checkpoint)
    state = {_renamed(n): weight.float().clone() for n, weight in weights.items() if n.startswith(PARTS[:2])}
    try:
        arguments = _arguments({name: tuple(weight.shape) for name, weight in state.items()})
    except (KeyError, IndexError, ZeroDivisionError) as error:
        hint = ""
        if "network_weights" in checkpoint:
            hint = " It is a checkpoint of nnU-Net."
        elif any(name.startswith("sam_mask_decoder.") for name in weight_names(checkpoint.get("model"))):
            hint = " It is SAM2 in Meta's own format: give a folder of it in the format of transformers instead."
        raise CheckpointError(
            f"{path} is not a checkpoint of SAM: its prompt encoder or mask decoder lacks {error}; it has "
            f"{format_names(list(map(str, checkpoint)))}.{hint} {WHERE_FROM}"
        ) from error
    # a plain ViT says for what grid it was made; other image encoders (MobileSAM's) do not, and are all made for 1024
    positions = weights.get("image_encoder.pos_embed")
    canvas = positions.shape[1] * GRID if positions is not None and positions.ndim == 4 else NATIVE_CANVAS
    return DecoderFile(path, "sam", canvas, *arguments, _with_positions(state), note)


def _from_folder(path: Path) -> DecoderFile:
    try:
        config = read_json(path / CONFIG)
        model_type = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} has no readable {CONFIG} ({summarize_error(error)}). {WHERE_FROM}") from error
    if not isinstance(model_type, str) or model_type not in KINDS:
        raise CheckpointError(
            f"{path / CONFIG} says model_type {model_type!r:.100}, not {', '.join(KINDS)}. {WHERE_FROM}"
        )
    state = find_weights(path).read(PARTS)
    prompts, masks = (config.get(f"{part}_config", {}) for part in ("prompt_encoder", "mask_decoder"))
    if not isinstance(prompts, dict) or not isinstance(masks, dict):
        raise CheckpointError(f"{path / CONFIG} does not describe prompt encoder and mask decoder. {WHERE_FROM}")
    # the grid follows from the image's size, which may be changed for another canvas
    prompts = {k: v for k, v in numbers_of_config(prompts).items() if k != "image_embedding_size"}
    canvas = prompts.get("image_size", NATIVE_CANVAS)
    if type(canvas) is not int or canvas < GRID:
        raise CheckpointError(f"{path / CONFIG} says an image size of {canvas!r:.100}, which is none. {WHERE_FROM}")
    return DecoderFile(path, KINDS[model_type], canvas, prompts, numbers_of_config(masks), _with_positions(state))


def _renamed(name: str) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _with_positions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the random matrix of the positional encoding where it is missing: prompts and image share it."""
    held = next((state[name] for name in POSITIONS if name in state), None)
    return state if held is None else {**dict.fromkeys(POSITIONS, held), **state}


def _arguments(shape: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of transformers' configurations from the shapes of the weights.

    Raises:
        KeyError: a weight is missing.
    """
    width = shape["mask_decoder.iou_token.weight"][1]
    layer = "mask_decoder.transformer.layers.0"
    layers = {name.split(".")[3] for name in shape if name.startswith("mask_decoder.transformer.layers.")}
    prompt_encoder = {"hidden_size": width, "mask_input_channels": shape["prompt_encoder.mask_embed.conv3.weight"][1]}
    mask_decoder = {
        "hidden_size": width,
        "mlp_dim": shape[f"{layer}.mlp.lin1.weight"][0],
        "num_hidden_layers": len(layers),
        "attention_downsample_rate": width // shape[f"{layer}.cross_attn_token_to_image.q_proj.weight"][0],
        "num_multimask_outputs": shape["mask_decoder.mask_tokens.weight"][0] - 1,
        "iou_head_hidden_dim": shape["mask_decoder.iou_prediction_head.proj_in.weight"][0],
    }
    return prompt_encoder, mask_decoder
