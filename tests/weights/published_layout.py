"""Checkpoints in the layout of the published encoder with random weights, and its forward pass as described.

This module does not use the package: the forward pass is the reference for the network of the package.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

HEADS = (6, 12, 24)  # of the three groups of token-interactive blocks
MEAN = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)
STD = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)


def published_state(
    width: int = 48,
    groups: tuple[int, int, int] = (1, 2, 1),
    *,
    layers: int = 2,
    decoder_dim: int = 16,
    grid: int = 4,
    kernels: tuple[int, int] = (1, 3),
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return every tensor that the authors' code saves for image encoder and neck, with random values."""
    random = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def add(name: str, *shape: int, scale: float | None = None) -> None:
        fan_in = torch.Size(shape[1:]).numel()
        state[name] = torch.randn(shape, generator=random) * (fan_in**-0.5 if scale is None else scale)

    def add_linear(name: str, rows: int, columns: int) -> None:
        add(f"{name}.weight", rows, columns)
        add(f"{name}.bias", rows, scale=0.3)

    def add_norm(name: str, channels: int) -> None:
        add(f"{name}.weight", channels, scale=0.2)
        state[f"{name}.weight"] += 1
        add(f"{name}.bias", channels, scale=0.2)

    def add_convolution_with_batch_norm(name: str, *shape: int) -> None:
        add(f"{name}.c.weight", *shape)
        add_norm(f"{name}.bn", shape[0])
        add(f"{name}.bn.running_mean", shape[0], scale=0.3)
        state[f"{name}.bn.running_var"] = torch.rand(shape[0], generator=random) + 0.5
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(50000)

    add("image_encoder.patch_embed.proj.weight", width, 3, 16, 16)
    add("image_encoder.patch_embed.proj.bias", width, scale=0.3)
    for block in range(layers):
        name = f"image_encoder.layers.0.blocks.{block}"
        add_convolution_with_batch_norm(f"{name}.conv1", 2 * width, width, 1, 1)
        add_convolution_with_batch_norm(f"{name}.conv2", 2 * width, 1, 3, 3)
        add_convolution_with_batch_norm(f"{name}.conv3", width, 2 * width, 1, 1)
    for group, size in enumerate(groups, start=1):
        for block in range(size):
            name = f"image_encoder.layers.{group}.blocks.{block}"
            add_norm(f"{name}.norm1", width)
            add_linear(f"{name}.act_proj", width, width)
            add_linear(f"{name}.attn.qk", 2 * width, width)
            add(f"{name}.attn.lepe.weight", width, 1, 3, 3)
            add(f"{name}.attn.lepe.bias", width, scale=0.3)
            state[f"{name}.attn.rope.rotations"] = torch.view_as_real(rotations(grid, width)).float()
            add_linear(f"{name}.attn.up_proj", width // 4, width)
            add_linear(f"{name}.attn.down_proj", width, width // 4)
            add_linear(f"{name}.out_proj", width, width)
            add_norm(f"{name}.norm2", width)
            add_linear(f"{name}.mlp.fc1", 2 * width, width)
            add_linear(f"{name}.mlp.fc2", width, 2 * width)
    add("neck.0.weight", decoder_dim, width, kernels[0], kernels[0])
    add_norm("neck.1", decoder_dim)
    add("neck.2.weight", decoder_dim, decoder_dim, kernels[1], kernels[1])
    add_norm("neck.3", decoder_dim)
    return state


def write_published(path: Path, **options) -> Path:
    torch.save(published_state(**options), path)
    return path


def decoder_state() -> dict[str, Tensor]:
    """Return a few weights of the parts that fine-tuning adds."""
    return {
        "prompt_encoder.no_mask_embed.weight": torch.ones(1, 16),
        "mask_decoder.mask_tokens.weight": torch.ones(4, 16),
        "mask_decoder.transformer.layers.0.norm1.weight": torch.ones(16),
    }


def normalized(images: Tensor, divisor: Tensor) -> Tensor:
    """Return images (B, 3, S, S) in 0..1, minus the mean of ImageNet, divided by `divisor`."""
    return (images.double() - MEAN[:, None, None]) / divisor[:, None, None]


def published_forward(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """Apply published encoder and neck to normalized images (B, 3, S, S) -> (B, decoder_dim, S/16, S/16) in float64.

    Attention is evaluated by definition: the similarity of each token with every other, divided by the sum.
    """
    w = {name: value.double() if value.is_floating_point() else value for name, value in state.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def layer_norm(x: Tensor, name: str, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]
        )

    def batch_norm(x: Tensor, name: str) -> Tensor:
        scale = w[f"{name}.weight"] / (w[f"{name}.running_var"] + 1e-5).sqrt()
        shift = w[f"{name}.bias"] - w[f"{name}.running_mean"] * scale
        return x * scale[:, None, None] + shift[:, None, None]

    x = F.conv2d(images.double(), w["image_encoder.patch_embed.proj.weight"], stride=16)
    x = x + w["image_encoder.patch_embed.proj.bias"][:, None, None]
    for block in blocks_of(state, 0):
        inside = x
        for convolution in ("conv1", "conv2", "conv3"):
            weight = w[f"{block}.{convolution}.c.weight"]
            groups = inside.shape[1] // weight.shape[1]
            inside = F.conv2d(inside, weight, padding=weight.shape[-1] // 2, groups=groups)
            inside = batch_norm(inside, f"{block}.{convolution}.bn")
            if convolution != "conv3":
                inside = F.gelu(inside)
        x = F.gelu(inside + x)

    batch, width, side, _ = x.shape
    tokens = x.flatten(2).transpose(1, 2)
    for group, heads in enumerate(HEADS, start=1):
        for block in blocks_of(state, group):
            inside = layer_norm(tokens, f"{block}.norm1", 1e-5)
            gate = F.silu(linear(inside, f"{block}.act_proj"))
            queries, keys = (F.elu(part) + 1 for part in linear(inside, f"{block}.attn.qk").split(width, -1))
            values = linear(F.silu(linear(inside, f"{block}.attn.up_proj")), f"{block}.attn.down_proj")
            attended = []
            for q, k, turned_q, turned_k, v in zip(
                *(part.chunk(heads, -1) for part in (queries, keys, rotated(queries), rotated(keys), values)),
                strict=True,
            ):
                total = q @ k.mean(1, keepdim=True).transpose(1, 2) + 1e-6
                attended.append((turned_q @ turned_k.transpose(1, 2) / side**2) @ v / total)
            local = F.conv2d(
                values.transpose(1, 2).unflatten(2, (side, side)),
                w[f"{block}.attn.lepe.weight"],
                w[f"{block}.attn.lepe.bias"],
                padding=1,
                groups=width,
            )
            inside = torch.cat(attended, -1) + local.flatten(2).transpose(1, 2)
            tokens = tokens + linear(inside * gate, f"{block}.out_proj")
            inside = layer_norm(tokens, f"{block}.norm2", 1e-5)
            tokens = tokens + linear(F.gelu(linear(inside, f"{block}.mlp.fc1")), f"{block}.mlp.fc2")

    x = tokens.transpose(1, 2).unflatten(2, (side, side))
    for convolution, norm in (("neck.0", "neck.1"), ("neck.2", "neck.3")):
        weight = w[f"{convolution}.weight"]
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        x = layer_norm(x.movedim(1, -1), norm, 1e-6).movedim(-1, 1)
    return x


def blocks_of(state: dict[str, Tensor], group: int) -> list[str]:
    start = f"image_encoder.layers.{group}.blocks."
    return [f"{start}{number}" for number in range(100) if any(n.startswith(f"{start}{number}.") for n in state)]


def rotated(tokens: Tensor) -> Tensor:
    """Rotate tokens (B, N, C) of a square grid, with neighboring channels as complex numbers, by their positions."""
    pairs = torch.view_as_complex(tokens.unflatten(-1, (-1, 2)).contiguous())
    side = round(tokens.shape[1] ** 0.5)
    return torch.view_as_real(pairs * rotations(side, tokens.shape[2]).flatten(0, 1)).flatten(-2)


def rotations(side: int, width: int) -> Tensor:
    """Return exp(i angle) of each channel pair at each position, (side, side, width / 2): rows first, then columns."""
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    rows = angles[:, None].expand(-1, side, -1)
    columns = angles[None].expand(side, -1, -1)
    angles = torch.cat([rows, columns], -1)
    return torch.polar(torch.ones_like(angles), angles)
