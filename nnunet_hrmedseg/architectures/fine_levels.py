"""Feature maps at higher resolution than the embedding, for SAM2's mask decoder.

SAM2's decoder also reads levels at 1/4 and 1/8 of the image (arXiv 2408.00714, section 4).

Several levels of one image travel as one tensor, packed: what lies under a pixel of the coarsest level becomes channels
(pixel unshuffle). So caches, batches and losses know one kind of embedding only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_hrmedseg.architectures.layers import LayerNorm2d, at_least_float32, without_autocast

__all__ = ["FineLevels", "pack", "packed_channels", "unpack"]


class FineLevels(nn.Module):
    """Two steps up from the encoder's map: (B, C, h, w) -> (B, quarter, 4h, 4w) and (B, eighth, 2h, 2w).

    Each step is a transposed convolution (k2, s2) to twice the level's width, LayerNorm2d and GELU, and a 3 x 3
    convolution that makes the level from it. It starts from the encoder's map, not from the neck's, whose numbers are
    those of the teacher's embedding.

    Args:
        channels: C, width of the encoder.
        widths: of the levels at 1/4 and 1/8 of the image; 32 and 64 in SAM2.
    """

    def __init__(self, channels: int, widths: tuple[int, int] = (32, 64)) -> None:
        super().__init__()
        quarter, eighth = widths
        self.up1 = nn.ConvTranspose2d(channels, 2 * eighth, kernel_size=2, stride=2)
        self.norm1 = LayerNorm2d(2 * eighth)
        self.eighth = nn.Conv2d(2 * eighth, eighth, kernel_size=3, padding=1)
        self.up2 = nn.ConvTranspose2d(2 * eighth, 2 * quarter, kernel_size=2, stride=2)
        self.norm2 = LayerNorm2d(2 * quarter)
        self.quarter = nn.Conv2d(2 * quarter, quarter, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # as in the neck: the encoder's residual stream is unnormalized, and could leave fp16's range
        with without_autocast(x):
            x = F.gelu(self.norm1(self.up1(at_least_float32(x))))
        return self.quarter(F.gelu(self.norm2(self.up2(x)))), self.eighth(x)


def packed_channels(widths: Sequence[int]) -> list[int]:
    """Return the channels that each level takes when packed, from the finest level to the coarsest."""
    return [width * 4 ** (len(widths) - 1 - level) for level, width in enumerate(widths)]


def pack(levels: Sequence[Tensor]) -> Tensor:
    """Levels (B, C_i, h 2^(n-1-i), w 2^(n-1-i)) from the finest to the coarsest (B, C_n, h, w) -> (B, sum, h, w)."""
    last = len(levels) - 1
    return torch.cat([F.pixel_unshuffle(level, 2 ** (last - i)) for i, level in enumerate(levels)], 1)


def unpack(packed: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """Return the levels that were packed, from the finest to the coarsest."""
    parts = packed.split(packed_channels(widths), dim=1)
    return [F.pixel_shuffle(part, 2 ** (len(widths) - 1 - level)) for level, part in enumerate(parts)]
