"""nnU-Net's normalization of RGB images, as its preprocessing does it, for a batch on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["NORMALIZATIONS", "normalize_images"]

# nnU-Net's 1e-8 divides the rounding error of a constant image's mean by itself; no image of 8 bits comes near this
SMALLEST_STD = 1e-4


def normalize_images(images: Tensor, schemes: Sequence[str], use_mask: Sequence[bool]) -> Tensor:
    """RGB images (B, 3, H, W) in 0..1 -> (B, len(schemes), H, W), as the preprocessing of a plan makes them.

    nnU-Net cuts black borders off before it takes means and extremes; here they stay and are left out of both.

    Args:
        images: float32.
        schemes: a row of NORMALIZATIONS for each channel: three, or one for the mean of red, green and blue.
        use_mask: for each channel, whether z-scores are taken over the pixels that are not black, and the others stay
            0. (nnU-Net would count black holes in, but fills them in volumes only: those of one slice are open.)
    """
    pixels = images * 255
    if len(schemes) == 1:
        pixels = pixels.mean(1, keepdim=True)
    lit = (pixels != 0).any(1)
    inside = _bounding_box(lit)
    return torch.stack(
        [
            NORMALIZATIONS[scheme](pixels[:, channel], lit if mask else inside, mask)
            for channel, (scheme, mask) in enumerate(zip(schemes, use_mask, strict=True))
        ],
        dim=1,
    )


# Each takes a channel (B, H, W) in 0..255, the pixels (B, H, W) that count, and whether only those are changed.


def _z_score(pixels: Tensor, counts: Tensor, keep_outside: bool) -> Tensor:
    number = counts.sum((1, 2), keepdim=True).clamp(min=1)
    mean = (pixels * counts).sum((1, 2), keepdim=True) / number
    centred = pixels - mean
    std = ((centred.square() * counts).sum((1, 2), keepdim=True) / number).sqrt()
    normalized = centred / std.clamp(min=SMALLEST_STD)
    return torch.where(counts, normalized, pixels) if keep_outside else normalized


def _rescale_to_0_1(pixels: Tensor, counts: Tensor, _: bool) -> Tensor:
    low = pixels.masked_fill(~counts, torch.inf).amin((1, 2), keepdim=True)
    high = pixels.masked_fill(~counts, -torch.inf).amax((1, 2), keepdim=True)
    low, high = low.nan_to_num(posinf=0), high.nan_to_num(neginf=0)  # of an image that is all black
    return (pixels - low) / (high - low).clamp(min=SMALLEST_STD)


def _rgb_to_0_1(pixels: Tensor, *_: object) -> Tensor:
    return pixels / 255


def _unchanged(pixels: Tensor, *_: object) -> Tensor:
    return pixels


NORMALIZATIONS: dict[str, Callable[[Tensor, Tensor, bool], Tensor]] = {
    "ZScoreNormalization": _z_score,
    "RGBTo01Normalization": _rgb_to_0_1,
    "RescaleTo01Normalization": _rescale_to_0_1,
    "NoNormalization": _unchanged,
}
"""nnU-Net's schemes that mean something for images of 0..255."""


def _bounding_box(lit: Tensor) -> Tensor:
    """(B, H, W) -> the same, true in the smallest rectangle of each image that holds all true pixels."""
    rows, columns = lit.any(2), lit.any(1)
    return _between(rows)[:, :, None] & _between(columns)[:, None, :]


def _between(true: Tensor) -> Tensor:
    """(B, N) -> true from the first true value to the last."""
    number = true.long()
    return (number.cumsum(1) > 0) & (number.flip(1).cumsum(1).flip(1) > 0)
