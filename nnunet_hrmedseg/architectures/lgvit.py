"""LGViT, the lightweight gated vision transformer of HRMedSeg (arXiv 2504.06205v1, section 3.2).

The second version of the paper (HER-Seg) calls it CE-Encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_hrmedseg.architectures.layers import DropPath, Mlp, to_map, to_tokens, without_autocast
from nnunet_hrmedseg.architectures.linear_attention import DualGatedLinearAttention
from nnunet_hrmedseg.architectures.recompute import Recomputable, breaks_graphs, recomputed, uncompiled
from nnunet_hrmedseg.architectures.rotary import Rotation, grid_rotation

__all__ = ["LGViT", "PATCH_SIZE"]

PATCH_SIZE = 16


class LGViT(Recomputable):
    """Image encoder: patch embedding, channel-interactive layers, token-interactive layers.

    All layers work at the same width C and the same resolution, 1/16 of the image.

    Args:
        input_channels: channels of the image.
        embed_dim: C, a multiple of 4.
        depth: L, the number of token-interactive blocks (0 leaves them out), shared out to three groups: the first two,
            the last two, and all between. Or the three group sizes themselves, such as [2, 6, 2].
        num_heads: heads of the three groups. Where C cannot be split into so many heads of an even width, the next
            smaller number that fits is used; the number of parameters does not depend on it.
        channel_interactive_layers: number of channel-interactive layers (0 leaves them out).
        expansion: hidden width of both kinds of layers, in units of C.
        inter_gate: gate the values of the attention (Eq. 4).
        exter_gate: gate the output of the attention (Eq. 5).
        rotary: rotate queries and keys by 2D rotary positions.
        drop_path: stochastic depth of the last token-interactive block; the rate rises to it linearly from 0.

    Raises:
        ValueError: a depth, width or number of layers that cannot be built.
    """

    def __init__(
        self,
        input_channels: int,
        embed_dim: int = 96,
        depth: int | Sequence[int] = 10,
        *,
        num_heads: Sequence[int] = (6, 12, 24),
        channel_interactive_layers: int = 2,
        expansion: int = 2,
        inter_gate: bool = True,
        exter_gate: bool = True,
        rotary: bool = True,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        if embed_dim < 4 or embed_dim % 4:
            raise ValueError(f"embed_dim must be a positive multiple of 4, got {embed_dim}")
        if channel_interactive_layers < 0:
            raise ValueError(f"channel_interactive_layers must be 0 or more, got {channel_interactive_layers}")
        groups = group_depths(depth)
        if len(num_heads) != len(groups):
            raise ValueError(f"num_heads must have one entry for each of {len(groups)} groups, got {list(num_heads)}")

        self.input_channels = input_channels
        self.embed_dim = embed_dim
        self.rotary = rotary
        self.patch_embedding = PatchEmbedding(input_channels, embed_dim)
        self.channel_interactive = ChannelInteractiveLayers(
            *(ChannelInteractiveLayer(embed_dim, expansion) for _ in range(channel_interactive_layers))
        )
        heads = [
            fitting_heads(embed_dim, wanted)
            for size, wanted in zip(groups, num_heads, strict=True)
            for _ in range(size)
        ]
        rates = [drop_path * block / max(1, len(heads) - 1) for block in range(len(heads))]
        self.token_interactive = nn.ModuleList(
            TokenInteractiveLayer(
                embed_dim, block_heads, expansion, inter_gate=inter_gate, exter_gate=exter_gate, drop_path=rate
            )
            for block_heads, rate in zip(heads, rates, strict=True)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, input_channels, H, W) -> embedding (B, C, H/16, W/16) in float32 or better.

        Raises:
            ValueError: if the image has other channels than the encoder, or H or W is not a multiple of 16.
        """
        check_image(image, self.input_channels)
        # Nothing is normalized up to the first block: in fp16, bright images would leave its range.
        with without_autocast(image):
            x = self.channel_interactive(self.patch_embedding(image), self.recompute)

        grid = x.shape[2], x.shape[3]
        tokens = to_tokens(x)
        rotation = grid_rotation(grid, self.embed_dim, device=x.device) if self.rotary else None
        for layer in self.token_interactive:
            tokens = recomputed(layer, tokens, grid, rotation, enabled=self.recompute, random=True)
        return to_map(tokens, grid)


class PatchEmbedding(nn.Module):
    """Image (B, input_channels, H, W) -> patch embeddings (B, C, H/16, W/16), memory format channels_last."""

    def __init__(self, input_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(input_channels, channels, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, image: Tensor) -> Tensor:
        # channels_last is the layout of tokens: no later change between map and tokens costs a copy.
        return self.proj(image.to(self.proj.weight.dtype)).contiguous(memory_format=torch.channels_last)


class ChannelInteractiveLayers(nn.Sequential):
    """Channel-interactive layers, one after the other: (B, C, h, w) -> the same.

    They are one module because the compiler cannot trace SyncBatchNorm, which several GPUs share: all of them are then
    left uncompiled as a whole, and the rest of the encoder is compiled in one piece.
    """

    def forward(self, x: Tensor, recompute: bool = False) -> Tensor:
        if torch.compiler.is_compiling() and breaks_graphs(self):
            return uncompiled(self._layers, x, recompute)
        return self._layers(x, recompute)

    def _layers(self, x: Tensor, recompute: bool) -> Tensor:
        for layer in self:
            x = recomputed(layer, x, enabled=recompute)
        return x


class ChannelInteractiveLayer(nn.Module):
    """MBConv at stride 1, Eq. 1: x <- s(Proj(s(DWConv(s(Conv(x))))) + x), s = GELU. (B, C, h, w) -> the same.

    Each convolution is followed by batch normalization; the last one starts at weight 0, that is, as the identity.
    """

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * channels
        self.expand = nn.Sequential(
            nn.Conv2d(channels, hidden, kernel_size=1, bias=False), nn.BatchNorm2d(hidden), nn.GELU()
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.GELU(),
        )
        last_norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(last_norm.weight)
        self.project = nn.Sequential(nn.Conv2d(hidden, channels, kernel_size=1, bias=False), last_norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.project(self.depthwise(self.expand(x))) + x)


class TokenInteractiveLayer(nn.Module):
    """Pre-norm transformer block around dual-gated linear attention (Eq. 3-5). (B, N, C) -> the same.

    x <- x + DGLA(LN(x));  x <- x + MLP(LN(x))
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        expansion: int,
        *,
        inter_gate: bool,
        exter_gate: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = DualGatedLinearAttention(channels, num_heads, inter_gate=inter_gate, exter_gate=exter_gate)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp([channels, expansion * channels, channels], nn.GELU)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: tuple[int, int], rotation: Rotation | None) -> Tensor:
        x = x + self.drop_path(self.attention(self.norm1(x), grid, rotation))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def group_depths(depth: int | Sequence[int]) -> tuple[int, ...]:
    """Return the sizes of the three groups of token-interactive blocks: 10 -> (2, 6, 2), 4 -> (2, 0, 2)."""
    if not isinstance(depth, int):
        groups = tuple(depth)
        if len(groups) != 3 or any(not isinstance(size, int) or size < 0 for size in groups):
            raise ValueError(f"depth must be a number of blocks or the sizes of three groups, got {list(depth)}")
        return groups
    if depth < 0:
        raise ValueError(f"depth must be 0 or more, got {depth}")
    first = min(2, depth)
    last = min(2, depth - first)
    return first, depth - first - last, last


def fitting_heads(channels: int, wanted: int) -> int:
    """Return the largest number of heads, at most `wanted`, that splits `channels` into heads of an even width."""
    return max(heads for heads in range(1, max(wanted, 1) + 1) if channels % (2 * heads) == 0)


def check_image(image: Tensor, input_channels: int) -> None:
    """Raise ValueError unless image is (B, input_channels, H, W) with H and W positive multiples of the patch size."""
    if image.ndim != 4 or image.shape[1] != input_channels:
        raise ValueError(
            f"this network takes images of shape (B, {input_channels}, H, W), got {tuple(image.shape)}: "
            f"use images with the channels that the network was built for"
        )
    height, width = image.shape[2:]
    if not height or not width or height % PATCH_SIZE or width % PATCH_SIZE:
        raise ValueError(
            f"image height and width must be multiples of {PATCH_SIZE}, got {height} x {width}: "
            f"resize or pad the image, or set the canvas (patch_size in the plans) to multiples of {PATCH_SIZE}"
        )
