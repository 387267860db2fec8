"""SegMaFormer (arXiv 2603.22002): a light network for volumes, state-space blocks first, self-attention last.

Four stages of falling resolution. The first three mix their many tokens by Mamba layers, in linear time; the last one
has few tokens and mixes them by self-attention. Positions enter by a 3D rotary embedding, and the decoder is a linear
layer for each stage and one for all (as SegFormer's). What the paper's text leaves open follows from its parameter
count, which is met exactly: see docs/benchmarks/published-counts.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_hrmedseg.architectures.ecm_decoder import refuse_deep_supervision
from nnunet_hrmedseg.architectures.layers import to_map, to_tokens
from nnunet_hrmedseg.architectures.mamba import Mamba
from nnunet_hrmedseg.architectures.recompute import recomputed
from nnunet_hrmedseg.architectures.rotary import grid_rotation, rotate

__all__ = ["SegMaFormer"]

Axes = Sequence[int]
"""One number for each of z, y, x."""

LAYER_SCALE = 1e-4  # how much of each branch of a Mamba block is added at first


class SegMaFormer(nn.Module):
    """Volume to logits. Any size of patch: what the strides do not divide is padded with 0 and cropped inside.

    Args:
        input_channels: channels of the volume.
        num_classes: K, the number of output channels.
        embed_dims: widths of the four stages.
        depths: blocks of the four stages.
        strides, kernel_sizes: of the four patch embeddings (odd kernels), for each axis.
        reductions: of the three Mamba stages, for each axis: their Mamba layers work on a grid this much coarser.
        state_sizes, expansions: of the Mamba layers in the first three stages.
        conv_width: tokens that their causal convolution sees.
        num_heads: of the attention in the last stage.
        mlp_ratios: hidden widths of the blocks' MLPs, in units of their stage's width.
        decoder_dim: width of the decoder.
        recompute: in training, keep each block's input alone and evaluate the block again in the backward pass.
        deep_supervision: nnU-Net passes it to every network; there is none here, so it must be False.

    With 4 input channels and 3 classes it has 2,018,505 parameters (published: 2.02 M).

    Raises:
        ValueError: for arguments from which no network can be built, or if deep supervision is asked for.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        embed_dims: Sequence[int] = (36, 66, 96, 192),
        depths: Sequence[int] = (2, 2, 1, 1),
        strides: Sequence[Axes] = ((4, 4, 4), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        kernel_sizes: Sequence[Axes] = ((7, 7, 7), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
        reductions: Sequence[Axes] = ((4, 4, 4), (1, 1, 1), (1, 1, 1)),
        state_sizes: Sequence[int] = (8, 4, 4),
        expansions: Sequence[int] = (2, 2, 1),
        conv_width: int = 3,
        num_heads: int = 6,
        mlp_ratios: Sequence[int] = (4, 4, 3, 3),
        decoder_dim: int = 256,
        recompute: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        refuse_deep_supervision(deep_supervision)
        check_shapes(strides, kernel_sizes, reductions)
        if embed_dims[-1] % num_heads:
            raise ValueError(f"{embed_dims[-1]} channels (embed_dims) cannot be split into {num_heads} num_heads")
        self.input_channels = input_channels
        self.multiples = multiples(strides, reductions)
        self.strides_of_all = prod(prod(stride) for stride in strides)
        stages = []
        for i, (width_in, width) in enumerate(zip((input_channels, *embed_dims), embed_dims, strict=False)):
            embedding = PatchEmbedding(width_in, width, kernel_sizes[i], strides[i])
            blocks: list[nn.Module] = []
            for _ in range(depths[i]):
                if i == 3:
                    blocks.append(AttentionBlock(width, num_heads, mlp_ratios[i]))
                    continue
                mamba = Mamba(width, state_size=state_sizes[i], conv_width=conv_width, expansion=expansions[i])
                blocks.append(MambaBlock(mamba, width, reductions[i], mlp_ratios[i]))
            stages.append(Stage(embedding, blocks, last_norm=(i == 3), recompute=recompute))
        self.encoder = Encoder(stages)
        self.decoder = AllMlpDecoder(embed_dims, num_classes, decoder_dim, recompute=recompute)

    def forward(self, image: Tensor) -> Tensor:
        """Volume (B, input_channels, Z, Y, X) -> logits (B, num_classes, Z, Y, X).

        Raises:
            ValueError: if the volume has other channels than the network, or the strides leave a single token of it.
        """
        if image.ndim != 5 or image.shape[1] != self.input_channels:
            raise ValueError(
                f"this network takes volumes of shape (B, {self.input_channels}, Z, Y, X), got {tuple(image.shape)}: "
                f"use volumes with the channels that the network was built for"
            )
        size = image.shape[2:]
        padding = [-length % multiple for length, multiple in zip(size, self.multiples, strict=True)]
        if any(padding):
            image = F.pad(image, [amount for behind in padding[::-1] for amount in (0, behind)])
        if image.shape[2:].numel() <= self.strides_of_all:
            raise ValueError(
                f"of a patch of {tuple(size)} the strides leave a single token, which cannot be normalised: choose a "
                f"larger patch_size or smaller strides in the plans"
            )
        logits = self.decoder(self.encoder(image))
        logits = F.interpolate(logits, size=image.shape[2:], mode="trilinear", align_corners=False)
        return logits[..., : size[0], : size[1], : size[2]]


class Encoder(nn.Module):
    """(B, channels, Z, Y, X) -> the maps of the four stages, (B, C_i, Z_i, Y_i, X_i)."""

    def __init__(self, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Stage(nn.Module):
    """Patch embedding, blocks, and a normalisation over all channels: (B, C_in, Z, Y, X) -> (B, C, Z/s, Y/s, X/s)."""

    def __init__(
        self, embedding: PatchEmbedding, blocks: Sequence[nn.Module], *, last_norm: bool, recompute: bool
    ) -> None:
        super().__init__()
        width = embedding.norm.normalized_shape[0]
        self.recompute = recompute
        self.embedding = embedding
        self.blocks = nn.ModuleList(blocks)
        self.token_norm = nn.LayerNorm(width) if last_norm else nn.Identity()
        self.norm = nn.GroupNorm(1, width)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.embedding.grid(x)
        tokens = recomputed(self.embedding, x, enabled=self.recompute)
        for block in self.blocks:
            tokens = recomputed(block, tokens, grid, enabled=self.recompute)
        return self.norm(to_map(self.token_norm(tokens), grid))


class PatchEmbedding(nn.Module):
    """Overlapping convolution, 3D rotary positions, layer normalisation: a map -> tokens (B, N, C) in z, y, x order.

    6 floor(C / 6) channels are turned, a third of them with each axis.
    """

    def __init__(self, channels: int, width: int, kernel_size: Axes, stride: Axes) -> None:
        super().__init__()
        padding = triple([size // 2 for size in kernel_size])
        self.proj = nn.Conv3d(channels, width, triple(kernel_size), triple(stride), padding)
        self.norm = nn.LayerNorm(width)
        self.turned = 6 * (width // 6)

    def grid(self, x: Tensor) -> tuple[int, ...]:
        """Tokens along z, y, x."""
        return tuple(-(-size // stride) for size, stride in zip(x.shape[2:], self.proj.stride, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        tokens = to_tokens(self.proj(x))
        rotation = grid_rotation(self.grid(x), self.turned, device=x.device)
        turned, rest = tokens.split([self.turned, tokens.shape[2] - self.turned], dim=-1)
        return self.norm(torch.cat((rotate(turned, rotation), rest), dim=-1))


class MambaBlock(nn.Module):
    """x <- x + s1 Linear(Mamba(LN(x)));  x <- x + s2 MLP(LN(x)), with learned scales s1, s2 of each channel.

    Where ``reduction`` is more than 1, Mamba and the linear layer work on a coarser grid. (B, N, C) -> the same.
    """

    def __init__(self, mamba: Mamba, width: int, reduction: Axes, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.reduction = SpatialReduction(width, reduction) if prod(reduction) > 1 else None
        self.mamba = mamba
        self.projection = nn.Linear(width, width)
        self.scale1 = nn.Parameter(torch.full((width,), LAYER_SCALE))
        self.norm2 = nn.LayerNorm(width)
        self.mlp = ConvolutionalMlp(width, mlp_ratio)
        self.scale2 = nn.Parameter(torch.full((width,), LAYER_SCALE))

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        y, coarse = self.norm1(x), grid
        if self.reduction is not None:
            y, coarse = self.reduction(y, grid)
        y = self.projection(self.mamba(y))
        if self.reduction is not None:
            y = to_tokens(F.interpolate(to_map(y, coarse), size=grid, mode="trilinear", align_corners=False))
        x = x + self.scale1 * y
        return x + self.scale2 * self.mlp(self.norm2(x), grid)


class SpatialReduction(nn.Module):
    """Convolution whose kernel is its stride, layer normalisation: tokens (B, N, C) -> (B, N / prod(ratio), C)."""

    def __init__(self, width: int, ratio: Axes) -> None:
        super().__init__()
        self.conv = nn.Conv3d(width, width, triple(ratio), triple(ratio))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
        """Returns the tokens and the grid that they lie on."""
        x = self.conv(to_map(x, grid))
        return self.norm(to_tokens(x)), tuple(x.shape[2:])


class AttentionBlock(nn.Module):
    """x <- x + Attention(LN(x));  x <- x + MLP(LN(x)). (B, N, C) -> the same."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = ConvolutionalMlp(width, mlp_ratio)

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        heads = self.query_key_value(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.transpose(1, 3).unbind(2)  # (B, heads, N, C / heads) each
        attended = F.scaled_dot_product_attention(query, key, value)
        x = x + self.projection(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x), grid)


class ConvolutionalMlp(nn.Module):
    """Linear, 3 x 3 x 3 depthwise convolution, instance normalisation, GELU, linear: (B, N, C) -> the same."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        hidden = ratio * width
        self.fc1 = nn.Linear(width, hidden)
        self.depthwise = nn.Conv3d(hidden, hidden, kernel_size=3, padding=1, groups=hidden)
        self.norm = nn.InstanceNorm3d(hidden, affine=True)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        x = self.norm(self.depthwise(to_map(self.fc1(x), grid)))
        return self.fc2(to_tokens(F.gelu(x)))


class AllMlpDecoder(nn.Module):
    """Each stage to the decoder's width, all at the resolution of the first stage, fused, classified.

    The paper upsamples, concatenates, and then fuses by a 1 x 1 x 1 convolution without bias. A convolution of one
    point and interpolation may change places: here each stage goes through its part of the fusing weights at its own
    resolution, and what is upsampled is summed. The same function, to rounding, in a quarter of the operations and
    without the concatenated maps.

    Everything whose shape depends on the number of classes lives in ``seg_layers``, and nothing else does: nnU-Net
    leaves parameters of that name alone when it loads weights pretrained with other classes.
    """

    def __init__(self, embed_dims: Sequence[int], num_classes: int, dim: int, *, recompute: bool = False) -> None:
        super().__init__()
        self.recompute = recompute
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Linear(width, dim), nn.LayerNorm(dim)) for width in embed_dims
        )
        self.fuse = nn.Linear(len(embed_dims) * dim, dim, bias=False)
        self.norm = nn.InstanceNorm3d(dim, affine=True)
        self.seg_layers = nn.Conv3d(dim, num_classes, kernel_size=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps of all stages, (B, C_i, Z_i, Y_i, X_i), the finest first -> logits (B, K, Z_1, Y_1, X_1)."""
        return recomputed(self._logits, *maps, enabled=self.recompute)

    def _logits(self, *maps: Tensor) -> Tensor:
        finest, *coarser = (
            to_map(F.linear(projection(to_tokens(x)), weight), x.shape[2:])
            for x, projection, weight in zip(maps, self.projections, self.fuse.weight.chunk(len(maps), 1), strict=True)
        )
        for x in coarser:
            finest = finest + F.interpolate(x, size=finest.shape[2:], mode="trilinear", align_corners=False)
        return self.seg_layers(F.relu(self.norm(finest)))

    @property
    def deep_supervision(self) -> bool:
        """Always False: there is one output, at one resolution. nnU-Net sets this name on every decoder."""
        return False

    @deep_supervision.setter
    def deep_supervision(self, enabled: bool) -> None:
        refuse_deep_supervision(enabled)


def check_shapes(strides: Sequence[Axes], kernel_sizes: Sequence[Axes], reductions: Sequence[Axes]) -> None:
    """Raises ValueError unless these are lists of 4, 4 and 3 triples, and all kernels odd."""
    for name, value, stages in (
        ("strides", strides, 4),
        ("kernel_sizes", kernel_sizes, 4),
        ("reductions", reductions, 3),
    ):
        if len(value) != stages or any(len(axes) != 3 or min(axes) < 1 for axes in value):
            raise ValueError(f"{name} must be {stages} triples (z, y, x) of positive numbers, got {value}")
    if any(size % 2 == 0 for axes in kernel_sizes for size in axes):
        raise ValueError(f"kernel_sizes must be odd, got {kernel_sizes}")


def multiples(strides: Sequence[Axes], reductions: Sequence[Axes]) -> list[int]:
    """Sizes along z, y, x that every stride and every reduction divides."""
    sizes = []
    for axis in range(3):
        so_far = [prod(stride[axis] for stride in strides[: i + 1]) for i in range(len(strides))]
        reduced = [stride * reduction[axis] for stride, reduction in zip(so_far, reductions, strict=False)]
        sizes.append(lcm(so_far[-1], *reduced))
    return sizes


def triple(axes: Axes) -> tuple[int, int, int]:
    z, y, x = axes
    return z, y, x
