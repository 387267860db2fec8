"""The neck: from the encoder's width to the decoder's. Encoder and neck together are what is distilled."""

from __future__ import annotations

from torch import Tensor, nn

from nnunet_hrmedseg.architectures.layers import LayerNorm2d, at_least_float32, without_autocast
from nnunet_hrmedseg.architectures.recompute import Recomputable, recomputed

__all__ = ["NECKS", "Neck"]

NECKS = {
    "1x1_3x3": (1, 3),  # HRMedSeg, arXiv 2504.06205v1, section 3.4
    "3x3_1x1": (3, 1),  # HER-Seg, arXiv 2504.06205v2, section 3.4
}
"""Kernel sizes of the two convolutions, in order."""


class Neck(Recomputable):
    """Two convolutions without bias, each followed by LayerNorm2d: (B, C, h, w) -> (B, D, h, w).

    The first one changes the width from C to D, whatever its kernel.

    Args:
        channels: C, width of the encoder.
        out_channels: D, width of the decoder.
        order: a row of NECKS.

    Raises:
        ValueError: if there is no such row.
    """

    def __init__(self, channels: int, out_channels: int = 256, order: str = "1x1_3x3") -> None:
        super().__init__()
        if order not in NECKS:
            raise ValueError(f"neck must be one of {list(NECKS)}, got {order!r}")
        first, second = NECKS[order]
        self.conv1 = nn.Conv2d(channels, out_channels, kernel_size=first, padding=first // 2, bias=False)
        self.norm1 = LayerNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=second, padding=second // 2, bias=False)
        self.norm2 = LayerNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        # The encoder's residual stream arrives unnormalized: in fp16 the first convolution could leave its range.
        with without_autocast(x):
            x = recomputed(self._first, at_least_float32(x), enabled=self.recompute)
        return self.norm2(self.conv2(x))

    def _first(self, x: Tensor) -> Tensor:
        return self.norm1(self.conv1(x))
