"""Complete SAM and SAM2 with random weights of a few kilobytes, in the formats of the real files; encoders for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import transformers

from nnunet_hrmedseg.teachers.loading import fingerprint
from nnunet_hrmedseg.weights import EncoderFile, write_encoder
from nnunet_hrmedseg.weights.student import Normalize, Student, encoder_architecture
from tests.teachers.tiny_teachers import write_sam2 as write_sam2_folder

SIDE = 64
WIDTH = 32
SEED = 7  # gives a SAM whose masks are neither empty nor full

META_NAMES = {
    "vision_encoder.pos_embed": "image_encoder.pos_embed",
    "vision_encoder.patch_embed.projection": "image_encoder.patch_embed.proj",
    **{f"vision_encoder.layers.{i}.layer_norm{k}": f"image_encoder.blocks.{i}.norm{k}" for i in (0, 1) for k in (1, 2)},
    **{
        f"vision_encoder.layers.{i}.{name}": f"image_encoder.blocks.{i}.{name}"
        for i in (0, 1)
        for name in ("attn.qkv", "attn.proj", "attn.rel_pos_h", "attn.rel_pos_w", "mlp.lin1", "mlp.lin2")
    },
    "vision_encoder.neck.conv1": "image_encoder.neck.0",
    "vision_encoder.neck.layer_norm1": "image_encoder.neck.1",
    "vision_encoder.neck.conv2": "image_encoder.neck.2",
    "vision_encoder.neck.layer_norm2": "image_encoder.neck.3",
    "prompt_encoder.shared_embedding.positional_embedding": (
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    ),
    **{f"prompt_encoder.point_embed.{i}": f"prompt_encoder.point_embeddings.{i}" for i in range(4)},
    "prompt_encoder.not_a_point_embed": "prompt_encoder.not_a_point_embed",
    "prompt_encoder.no_mask_embed": "prompt_encoder.no_mask_embed",
    "prompt_encoder.mask_embed.conv1": "prompt_encoder.mask_downscaling.0",
    "prompt_encoder.mask_embed.layer_norm1": "prompt_encoder.mask_downscaling.1",
    "prompt_encoder.mask_embed.conv2": "prompt_encoder.mask_downscaling.3",
    "prompt_encoder.mask_embed.layer_norm2": "prompt_encoder.mask_downscaling.4",
    "prompt_encoder.mask_embed.conv3": "prompt_encoder.mask_downscaling.6",
    "mask_decoder.iou_token": "mask_decoder.iou_token",
    "mask_decoder.mask_tokens": "mask_decoder.mask_tokens",
    **{
        f"mask_decoder.transformer.layers.{i}.{attention}.{name}": (
            f"mask_decoder.transformer.layers.{i}.{attention}.{name}"
        )
        for i in (0, 1)
        for attention in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
        for name in ("q_proj", "k_proj", "v_proj", "out_proj")
    },
    **{
        f"mask_decoder.transformer.layers.{i}.layer_norm{k}": f"mask_decoder.transformer.layers.{i}.norm{k}"
        for i in (0, 1)
        for k in (1, 2, 3, 4)
    },
    **{
        f"mask_decoder.transformer.layers.{i}.mlp.lin{k}": f"mask_decoder.transformer.layers.{i}.mlp.lin{k}"
        for i in (0, 1)
        for k in (1, 2)
    },
    **{
        f"mask_decoder.transformer.final_attn_token_to_image.{name}": (
            f"mask_decoder.transformer.final_attn_token_to_image.{name}"
        )
        for name in ("q_proj", "k_proj", "v_proj", "out_proj")
    },
    "mask_decoder.transformer.layer_norm_final_attn": "mask_decoder.transformer.norm_final_attn",
    "mask_decoder.upscale_conv1": "mask_decoder.output_upscaling.0",
    "mask_decoder.upscale_layer_norm": "mask_decoder.output_upscaling.1",
    "mask_decoder.upscale_conv2": "mask_decoder.output_upscaling.3",
    **{
        f"mask_decoder.{mlp}.{ours}": f"mask_decoder.{mlp}.layers.{number}"
        for mlp in ("iou_prediction_head", *(f"output_hypernetworks_mlps.{i}" for i in range(4)))
        for number, ours in enumerate(("proj_in", "layers.0", "proj_out"))
    },
}
"""Transformers' name of a module or parameter -> the name in segment-anything, for two layers each. All are listed."""


def sam(seed: int = SEED) -> transformers.SamModel:
    config = transformers.SamConfig(
        vision_config={
            "hidden_size": 32,
            "output_channels": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "window_size": 3,
            "global_attn_indexes": [1],
            "num_pos_feats": WIDTH // 2,
        },
        prompt_encoder_config={"hidden_size": WIDTH, "image_size": SIDE},
        mask_decoder_config={"hidden_size": WIDTH, "mlp_dim": 48, "iou_head_hidden_dim": 24},
    )
    torch.manual_seed(seed)
    return _randomized(transformers.SamModel(config).eval())


def _randomized(model):
    """Randomize the weights so that masks have edges: transformers initializes some with 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.normal_(1, 0.2)
            elif parameter.ndim > 1 and "embed" not in name and "token" not in name:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.normal_(0, 0.5)
    return model


def in_metas_names(model) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, value in model.state_dict().items():
        if name == "shared_image_embedding.positional_embedding":  # stored once in this format
            continue
        module, _, parameter = name.rpartition(".")
        renamed[META_NAMES[name] if name in META_NAMES else f"{META_NAMES[module]}.{parameter}"] = value
    return renamed


def write_sam_pth(path: Path, seed: int = SEED) -> Path:
    torch.save(in_metas_names(sam(seed)), path)
    return path


def write_mobile_sam(path: Path, seed: int = SEED) -> Path:
    """Write the decoder of a SAM, and an image encoder of another kind under the same prefix."""
    weights = {name: w for name, w in in_metas_names(sam(seed)).items() if not name.startswith("image_encoder.")}
    weights["image_encoder.layers.0.blocks.0.conv1.c.weight"] = torch.randn(4, 3, 1, 1)
    weights["image_encoder.neck.0.weight"] = torch.randn(WIDTH, 4, 1, 1)
    torch.save(weights, path)
    return path


def write_sam_folder(folder: Path, seed: int = SEED) -> Path:
    sam(seed).save_pretrained(folder)
    return folder


def sam2(folder: Path) -> transformers.Sam2Model:
    return transformers.Sam2Model.from_pretrained(folder, local_files_only=True).eval()


def write_sam2(folder: Path, model_type: str = "sam2") -> Path:
    write_sam2_folder(folder, model_type=model_type)
    if model_type == "sam2":
        _randomized(sam2(folder)).save_pretrained(folder)
    return folder


def write_student(
    file: Path, kind: str = "sam", *, width: int = WIDTH, fit: str = "pad", seed: int = 0, **card
) -> EncoderFile:
    """Write an encoder file like `hrmedseg encoder distill --promptable`, with random weights."""
    architecture = encoder_architecture(embed_dim=24, depth=1, decoder_dim=width)
    if kind == "sam2":
        architecture["fine_channels"] = [width // 8, width // 4]
        fit = "stretch"
    torch.manual_seed(seed)
    described = {
        "name": "tiny",
        "architecture": architecture,
        "normalization": Normalize("mean_std").card(),
        "teacher": {"kind": kind, "name": f"tiny {kind}"},
        "recipe": {"canvas": [SIDE, SIDE], "fit": fit},
        **card,
    }
    return write_encoder(file, Student(described["architecture"]).state_dict(), described)


def decoder_id(model) -> str:
    return fingerprint(model.mask_decoder.iou_token.weight)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return (H, W, 3) uint8: a bright disc on noise."""
    random = np.random.default_rng(seed)
    y, x = np.ogrid[:height, :width]
    image = random.integers(0, 90, (height, width, 3), np.uint8)
    image[(y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) / 3) ** 2] += 120
    return image


def rewrite_json(file: Path, **changed) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
