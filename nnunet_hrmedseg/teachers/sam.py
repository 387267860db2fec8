"""SAM as a teacher: the image encoder of Segment Anything (arXiv 2304.02643) from Meta's original `.pth`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_hrmedseg.errors import CheckpointError, PlanError, SetupError, format_names, summarize_error
from nnunet_hrmedseg.io.checkpoints import load_checkpoint, weight_names
from nnunet_hrmedseg.io.extras import import_extra
from nnunet_hrmedseg.io.files import file_sha256
from nnunet_hrmedseg.teachers.loading import check_canvas, fingerprint, refuse_unknown_options
from nnunet_hrmedseg.teachers.sam_weights import sam_weights
from nnunet_hrmedseg.teachers.teacher import Teacher

__all__ = ["SAMTeacher", "ViTArchitecture", "vit_architecture"]

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
"""SAM's own normalization, RGB in 0..255."""

PREFIX = "image_encoder."
DECODER_TOKEN = "mask_decoder.iou_token.weight"  # by which a mask decoder is known again


@dataclass(frozen=True)
class ViTArchitecture:
    """All that a SAM image encoder is built from; a plain ViT with window attention (arXiv 2203.16527).

    Attributes:
        grid: height and width in patches of the images that it was trained on.
        window_size: side of the windows in patches; 0 where all blocks attend globally.
        global_blocks: blocks that attend to the whole image.
        neck_width: channels of the embedding.
    """

    width: int
    depth: int
    num_heads: int
    mlp_width: int
    patch_size: int
    grid: tuple[int, int]
    window_size: int
    global_blocks: tuple[int, ...]
    neck_width: int


VARIANTS = {
    "ViT-B": ViTArchitecture(768, 12, 12, 3072, 16, (64, 64), 14, (2, 5, 8, 11), 256),
    "ViT-L": ViTArchitecture(1024, 24, 16, 4096, 16, (64, 64), 14, (5, 11, 17, 23), 256),
    "ViT-H": ViTArchitecture(1280, 32, 16, 5120, 16, (64, 64), 14, (7, 15, 23, 31), 256),
}

LICENSE_OF = {
    "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912": "Apache-2.0",  # sam_vit_b_01ec64.pth
    "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622": "Apache-2.0",  # sam_vit_l_0b3195.pth
    "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e": "Apache-2.0",  # sam_vit_h_4b8939.pth
}
"""sha256 of Meta's own files -> license under which they were published. Other files do not contain theirs."""


class SAMTeacher(Teacher):
    """SAM's image encoder with its neck: images (B, 3, H, W) -> (B, 256, H/16, W/16), which its mask decoder reads.

    SAM was trained at 1024 x 1024. On another canvas its absolute positions are resampled to the canvas' grid
    (bicubic) and the relative ones of its global blocks interpolated; the windows stay as they are.

    Attributes:
        variant: "ViT-B", "ViT-L", "ViT-H", or its sizes if it is none of the three.
    """

    kind = "sam"
    description = (
        "a checkpoint of SAM under the names of its original files (.pth, .pt, .ckpt), such as sam_vit_h_4b8939.pth"
    )
    fit = "pad"
    feeds_decoder = True

    def __init__(self, file: Path, network: nn.Module, architecture: ViTArchitecture) -> None:
        self.file = file
        self.network = network
        self.architecture = architecture
        self.channels = architecture.neck_width
        names = {sizes: name for name, sizes in VARIANTS.items()}
        self.variant = names.get(architecture, f"ViT of width {architecture.width} and depth {architecture.depth}")

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return path.is_file() and path.suffix in (".pth", ".pt", ".ckpt")

    @classmethod
    def load(cls, path: Path, *, canvas: tuple[int, int], **options: Any) -> SAMTeacher:
        """See Teacher. No options. Which SAM it is follows from the weights; the file may have any name.

        Checkpoints of other trainings are unwrapped as by `sam_weights`.

        Raises:
            CheckpointError: no SAM checkpoint, damaged, or a canvas that is no multiple of the patch size.
        """
        refuse_unknown_options(cls.kind, options)
        canvas = check_canvas(canvas)
        checkpoint = load_checkpoint(path)
        state, note = sam_weights(path, checkpoint)
        if f"{PREFIX}patch_embed.proj.weight" not in state:
            raise CheckpointError(_describe_foreign_checkpoint(path, checkpoint, state))
        weights = {name: weight for name, weight in state.items() if name.startswith(PREFIX)}
        try:
            architecture = vit_architecture({name: tuple(weight.shape) for name, weight in weights.items()})
        except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
            raise CheckpointError(
                f"{path}: its image encoder is not that of a SAM ViT ({summarize_error(error)})."
            ) from error
        if architecture.patch_size < 1 or any(size % architecture.patch_size for size in canvas):
            raise PlanError(f"{path} needs a canvas in multiples of {architecture.patch_size}, not {canvas}.")
        try:
            network = build_encoder(architecture, weights)
        except SetupError:
            raise
        except (RuntimeError, ValueError, TypeError, ZeroDivisionError) as error:
            raise CheckpointError(f"{path} is damaged or not of SAM: {_all_lines(error)}") from error
        teacher = cls(path, network, architecture)
        teacher.note = note
        token = state.get(DECODER_TOKEN)
        teacher.decoder_id = None if token is None else fingerprint(token)
        return teacher

    def to(self, device: torch.device) -> SAMTeacher:
        self.network.to(device)
        return self

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        mean, std = (images.new_tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
        return self.network.forward_features((images * 255 - mean) / std).float()  # type: ignore[operator]

    def card(self) -> dict[str, Any]:
        sha256 = file_sha256(self.file)
        return {
            "kind": self.kind,
            "name": f"SAM {self.variant}",
            "variant": self.variant,
            "file": self.file.name,
            "sha256": sha256,
            "license": LICENSE_OF.get(sha256, "unknown"),
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "embedding": f"image encoder with neck, {self.channels} channels at 1/{self.architecture.patch_size}",
        }


def vit_architecture(shapes: Mapping[str, Sequence[int]]) -> ViTArchitecture:
    """Return the architecture of a SAM image encoder from the shapes of its weights, named as in Meta's files.

    The length of a block's relative positions is 2 n - 1, where n is the side of the grid that it attends to: all of
    the image's for a global block, a window's for the others.

    Raises:
        KeyError: a weight is missing.
        ValueError: weights that do not fit each other.
    """
    shape = {name.removeprefix(PREFIX): tuple(size) for name, size in shapes.items()}
    width, _, patch_size, _ = shape["patch_embed.proj.weight"]
    _, height_in_patches, width_in_patches, _ = shape["pos_embed"]
    grid = height_in_patches, width_in_patches
    depth = len({name.split(".")[1] for name in shape if name.startswith("blocks.")})

    global_blocks: list[int] = []
    windows: set[int] = set()
    for block in range(depth):
        seen = tuple((shape[f"blocks.{block}.attn.rel_pos_{axis}"][0] + 1) // 2 for axis in "hw")
        if seen == grid:
            global_blocks.append(block)
        else:
            windows.update(seen)
    if len(windows) > 1:
        raise ValueError(f"its blocks attend to windows of different sizes: {sorted(windows)} patches")

    head_width = shape["blocks.0.attn.rel_pos_h"][1]
    if width % head_width:
        raise ValueError(f"its width {width} is no multiple of the width {head_width} of a head")
    return ViTArchitecture(
        width=width,
        depth=depth,
        num_heads=width // head_width,
        mlp_width=shape["blocks.0.mlp.lin1.weight"][0],
        patch_size=patch_size,
        grid=grid,
        window_size=windows.pop() if windows else 0,
        global_blocks=tuple(global_blocks),
        neck_width=shape["neck.0.weight"][0],
    )


def build_encoder(architecture: ViTArchitecture, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return timm's VisionTransformerSAM with these weights (named as in Meta's files, copied), frozen.

    Raises:
        RuntimeError: Weights are missing, left over, or of another shape.
        SetupError: The package timm is missing.
    """
    timm_sam = import_extra("timm.models.vision_transformer_sam", "sam", "a SAM teacher")
    # without memory: a ViT-H would be filled with random numbers first
    with torch.device("meta"):
        network = timm_sam.VisionTransformerSAM(
            # timm takes one number or both sides; on images of another size it resamples positions as it runs
            img_size=tuple(side * architecture.patch_size for side in architecture.grid),  # type: ignore[arg-type]
            patch_size=architecture.patch_size,
            embed_dim=architecture.width,
            depth=architecture.depth,
            num_heads=architecture.num_heads,
            mlp_ratio=architecture.mlp_width / architecture.width,
            # SAM's own epsilon; timm's models of that name use 1e-5
            norm_layer=partial(nn.LayerNorm, eps=1e-6),  # type: ignore[arg-type]
            use_rel_pos=True,
            window_size=architecture.window_size,
            global_attn_indexes=architecture.global_blocks,
            neck_chans=architecture.neck_width,
            num_classes=0,
        )
    weights = {name: weight.to(torch.float32, copy=True) for name, weight in weights.items()}
    network.load_state_dict(timm_sam.checkpoint_filter_fn(weights, network), strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _describe_foreign_checkpoint(path: Path, checkpoint: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """Return why this is not a checkpoint of SAM, and what to do with checkpoints of other kinds."""
    hint = ""
    if "network_weights" in checkpoint:
        hint = " It is a checkpoint of nnU-Net: give the model's folder instead, the one with plans.json in it."
    elif "image_encoder.trunk." in " ".join(weight_names(checkpoint.get("model"))):
        hint = " It is SAM2 in Meta's own format: give a folder of it in the format of transformers instead."
    elif any(name.startswith(PREFIX) for name in state):
        hint = " Its image encoder is of another kind, as MobileSAM's, which cannot be a teacher."
    missing = f"{PREFIX}patch_embed.proj.weight"
    return f"{path} is not a checkpoint of SAM: it has no {missing}, but {format_names(list(checkpoint))}.{hint}"


def _all_lines(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 500 else f"{text[:500]} ..."
