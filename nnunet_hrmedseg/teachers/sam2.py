"""SAM2 and SAM2.1 as teachers (arXiv 2408.00714), from a local folder in the format of transformers."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_hrmedseg.architectures.fine_levels import pack
from nnunet_hrmedseg.errors import CheckpointError, format_names, summarize_error
from nnunet_hrmedseg.io.files import read_json
from nnunet_hrmedseg.teachers.loading import (
    GRID,
    check_canvas,
    fingerprint,
    import_transformers,
    numbers_of_config,
    refuse_unknown_options,
)
from nnunet_hrmedseg.teachers.teacher import Teacher
from nnunet_hrmedseg.teachers.weight_folder import WeightFolder, find_weights

__all__ = ["SAM2Teacher"]

MODEL_TYPES = ("sam2", "sam2_video")
"""What config.json calls the image model, and the video model that holds the same image encoder."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""SAM2's own normalization, RGB in 0..1."""

CONFIG = "config.json"


class SAM2Teacher(Teacher):
    """SAM2's image encoder (Hiera and its feature pyramid): (B, 3, H, W) -> (B, 256, H/16, W/16).

    The embedding is what SAM2's mask decoder reads of a single image as `image_embeddings`: the 1/16 level of the
    pyramid plus the learned `no_memory_embedding`, one constant for each channel, as in transformers'
    `Sam2Model.get_image_embeddings` and SAM2's own image predictor. Whoever puts a student in this encoder's place
    must not add it again; the memory attention for video reads the level without it, so take it off there.

    Hiera's position embedding adapts to any canvas that its windows and pyramid divide, multiples of 32 pixels in all
    published models. Images of another size are enlarged to the next such size, and the embedding has 1/16 of that.
    """

    kind = "sam2"
    description = "SAM2 or SAM2.1 in the format of transformers: a folder with config.json and model.safetensors"
    feeds_decoder = True

    def __init__(self, folder: Path, network: Any, weights: WeightFolder) -> None:
        self.folder, self.weights = folder, weights
        self.network = network
        vision = network.config.vision_config
        self.channels = vision.fpn_hidden_size
        backbone = vision.backbone_config
        stride = backbone.patch_stride[0]
        coarsest = stride * backbone.query_stride[0] ** backbone.num_query_pool_stages
        self.multiple = math.lcm(coarsest, stride * backbone.window_size_per_stage[0])

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        try:
            return read_json(path / CONFIG).get("model_type") in MODEL_TYPES
        except (OSError, ValueError, AttributeError):
            return False

    @classmethod
    def load(cls, path: Path, *, canvas: tuple[int, int], **options: Any) -> SAM2Teacher:
        """See Teacher. No options. Reads config.json and the safetensors files of the folder and nothing else.

        Raises:
            CheckpointError: Transformers is missing; no SAM2 in this folder; weights missing or damaged.
        """
        refuse_unknown_options(cls.kind, options)
        check_canvas(canvas)
        config = _read_config(path)
        weights = find_weights(path)
        transformers = import_transformers("a SAM2 teacher")
        try:
            loaded: Any = transformers.Sam2Model.from_pretrained(
                path,
                config=transformers.Sam2Config.from_dict(
                    numbers_of_config({k: v for k, v in config.items() if k != "model_type"})
                ),
                local_files_only=True,
                use_safetensors=True,
                variant=weights.variant,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except Exception as error:  # transformers and safetensors raise errors of many kinds for a damaged folder
            raise CheckpointError(
                f"{path} is damaged, or {CONFIG} does not fit {weights.name} ({summarize_error(error)}). Copy or "
                f"download it again."
            ) from error
        network, report = loaded
        if report["missing_keys"]:
            raise CheckpointError(
                f"{path / weights.name} lacks weights of SAM2: {format_names(sorted(report['missing_keys']))}."
            )
        teacher = cls(path, network.eval().requires_grad_(False), weights)
        teacher.decoder_id = fingerprint(network.mask_decoder.iou_token.weight)
        return teacher

    def to(self, device: torch.device) -> SAM2Teacher:
        self.network.to(device)
        return self

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        levels = self._levels(images)
        if not self.fine_channels:
            return levels[-1].float()
        grid = [side // GRID for side in images.shape[2:]]
        sizes = [[factor * side for side in grid] for factor in (4, 2, 1)]
        return pack([_resized(level.float(), size) for level, size in zip(levels, sizes, strict=True)])

    def enable_multiscale(self) -> None:
        decoder = self.network.mask_decoder
        self.fine_channels = decoder.conv_s0.out_channels, decoder.conv_s1.out_channels

    def _levels(self, images: Tensor) -> list[Tensor]:
        """Return the three maps that SAM2's mask decoder reads: 1/4 with 32 channels, 1/8 with 64, 1/16 with 256."""
        height, width = images.shape[2:]
        fitting = tuple(math.ceil(size / self.multiple) * self.multiple for size in (height, width))
        if fitting != (height, width):
            images = F.interpolate(images, fitting, mode="bilinear", antialias=True)
        mean, std = (images.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        fine, middle, coarse = self.network.vision_encoder((images - mean) / std).fpn_hidden_states
        decoder = self.network.mask_decoder
        return [
            decoder.conv_s0(fine),
            decoder.conv_s1(middle),
            coarse + self.network.no_memory_embedding.view(1, -1, 1, 1),
        ]

    def card(self) -> dict[str, Any]:
        encoder: nn.Module = self.network.vision_encoder
        parameters = sum(p.numel() for p in encoder.parameters())
        return {
            "kind": self.kind,
            "name": f"SAM2 ({self.folder.resolve().name})",
            "file": f"{self.folder.resolve().name}/{self.weights.name}",
            "sha256": self.weights.sha256(),
            "license": _license(self.folder),
            "parameters": parameters,
            "embedding": f"1/16 level with no_memory_embedding, {self.channels} channels"
            + "".join(f"; {at} level, {n} channels" for at, n in zip(("1/4", "1/8"), self.fine_channels, strict=False)),
        }


def _resized(level: Tensor, size: list[int]) -> Tensor:
    return level if list(level.shape[2:]) == size else F.interpolate(level, size, mode="bilinear")


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = read_json(folder / CONFIG)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} has no readable {CONFIG} ({summarize_error(error)}).") from error
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"{folder / CONFIG} says model_type {model_type!r:.100}; SAM2 has {' or '.join(MODEL_TYPES)}."
        )
    return config


def _license(folder: Path) -> str:
    """From the head of the model card that is published with a folder."""
    try:
        readme = (folder / "README.md").read_text(errors="replace")
    except OSError:
        return "unknown"
    head = re.match(r"---\s*\n(.*?)\n---", readme, re.DOTALL)
    license = re.search(r"^license:\s*(\S.*)$", head.group(1), re.MULTILINE) if head else None
    return license.group(1).strip() if license else "unknown"
