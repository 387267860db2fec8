"""Draw the demo's picture: image, reference and prediction, one below the other."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from skimage import exposure, io
from skimage.transform import resize

from nnunet_hrmedseg.io.pictures import outline

__all__ = ["write_picture"]

_HEIGHT = 320  # pixels of a panel
_OVERLAYS = {"reference": (0.10, 0.75, 0.35), "prediction": (0.95, 0.55, 0.05)}


def write_picture(columns: list[tuple[str, Path, Path, Path]], file: Path) -> None:
    """Write a PNG with a column for each (title, image, reference, prediction).

    The three files of a column have the same height and width. The contrast of dark images is stretched here, but not
    for the network.
    """
    aspects = []
    panels = []
    for title, image_file, *mask_files in columns:
        image = io.imread(image_file)
        height, width = image.shape[:2]
        size = (_HEIGHT, round(_HEIGHT * width / height))
        image = exposure.rescale_intensity(resize(image, size, anti_aliasing=True), in_range=_visible_range(image))
        masks = [resize(io.imread(mask) > 0, size, order=0, anti_aliasing=False).astype(bool) for mask in mask_files]
        overlays = [_overlay(image, mask, color) for mask, color in zip(masks, _OVERLAYS.values(), strict=True)]
        panels.append((title, [image, *overlays]))
        aspects.append(width / height)

    figure = Figure(figsize=(sum(aspects) * 2.0, 3 * 2.1), facecolor="white", layout="constrained")
    axes = figure.subplots(3, len(columns), squeeze=False, width_ratios=aspects)
    for column, (title, images) in enumerate(panels):
        axes[0, column].set_title(title, fontsize=12)
        for axis, image in zip(axes[:, column], images, strict=True):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for axis, heading in zip(axes[:, 0], ("image", *_OVERLAYS), strict=True):
        axis.set_ylabel(heading, fontsize=12)
    with matplotlib.rc_context({"savefig.dpi": 90}):
        figure.savefig(file)


def _visible_range(image: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(image, (0.5, 99.8)) / 255
    return low, max(high, low + 1e-3)


def _overlay(image: np.ndarray, mask: np.ndarray, color: tuple[float, float, float]) -> np.ndarray:
    painted = image.copy()
    painted[mask] = 0.55 * painted[mask] + 0.45 * np.array(color)
    painted[outline(mask)] = color
    return painted
