"""Resizing of images of any size to the canvas, the same for the training of encoders and for prompting.

- "stretch": to the canvas' height and width, whatever the aspect ratio.
- "pad": the longer side to the canvas' side, and the rest at the bottom or on the right filled with the color that
  SAM's normalization turns into 0, as in SAM.
"""

from __future__ import annotations

from PIL import Image

__all__ = [
    "fit_image",
    "fit_size",
]

PADDING = (124, 116, 104)  # the mean of SAM, and of ImageNet, in whole numbers


def fit_size(size: tuple[int, int], canvas: tuple[int, int], fit: str) -> tuple[int, int]:
    """Return height and width of an image of `size` (H, W) on the canvas (H, W)."""
    if fit == "stretch":
        return canvas
    scale = min(canvas[0] / size[0], canvas[1] / size[1])
    # rounded as SAM's ResizeLongestSide; a line of pixels stays
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    return height, width


def fit_image(image: Image.Image, canvas: tuple[int, int], fit: str) -> Image.Image:
    """Return the image in RGB on the canvas (H, W), resized bilinearly with antialiasing."""
    height, width = fit_size((image.height, image.width), canvas, fit)
    resized = image.resize((width, height), Image.Resampling.BILINEAR).convert("RGB")
    if (height, width) == tuple(canvas):
        return resized
    padded = Image.new("RGB", (canvas[1], canvas[0]), PADDING)
    padded.paste(resized)
    return padded
