"""Draw the demo's picture: image, truth and prediction side by side."""

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
_OVERLAYS = {"truth": (0.10, 0.75, 0.35), "prediction": (0.95, 0.55, 0.05)}


def write_picture(rows: list[tuple[str, Path, Path, Path]], file: Path) -> None:
    """Write a PNG with a row for each (title, image, truth, prediction): three files of the same height and width.

    The contrast of dark images is stretched here, but not for the network.
    """
    aspects = []
    panels = []
    for title, image_file, truth_file, prediction_file in rows:
        image = io.imread(image_file)
        height, width = image.shape[:2]
        size = (_HEIGHT, round(_HEIGHT * width / height))
        image = exposure.rescale_intensity(resize(image, size, anti_aliasing=True), in_range=_visible_range(image))
        masks = {
            name: resize(io.imread(mask) > 0, size, order=0, anti_aliasing=False).astype(bool)
            for name, mask in (("truth", truth_file), ("prediction", prediction_file))
        }
        panels.append((title, [image, *(_overlay(image, mask, _OVERLAYS[name]) for name, mask in masks.items())]))
        aspects.append(width / height)

    widest = max(aspects)
    figure = Figure(figsize=(3 * widest * 2.4, len(rows) * 2.7), facecolor="white", layout="constrained")
    axes = figure.subplots(len(rows), 3, squeeze=False)
    for row, (title, images) in zip(axes, panels, strict=True):
        for axis, heading, image in zip(row, (title, "truth", "prediction"), images, strict=True):
            axis.imshow(image)
            axis.set_title(heading, fontsize=9)
            axis.set_axis_off()
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
