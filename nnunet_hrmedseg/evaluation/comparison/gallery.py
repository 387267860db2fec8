"""Draw cases: the image with the contours of the reference, and of each model."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import region_or_label_to_mask
from PIL import Image, ImageDraw
from skimage.transform import resize

from nnunet_hrmedseg.evaluation.comparison.results import Results
from nnunet_hrmedseg.io.colors import CLASS_COLORS
from nnunet_hrmedseg.io.pictures import draw_contours
from nnunet_hrmedseg.io.stored_images import check_format
from nnunet_hrmedseg.measures import Label, Task

__all__ = ["Panel", "chosen_cases", "panels"]

SIDE = 720  # pixels of a panel's longer side
TRUTH_COLOR = "#ffffff"
MAX_BRIGHTENING = 10.0  # of dark RGB images; more would show noise and saturate bright cells


@dataclass(frozen=True)
class Panel:
    """One picture: its caption, and its content as a data URL."""

    caption: str
    source: str
    width: int
    height: int


def chosen_cases(results: Results) -> list[tuple[str, str]]:
    """Return (reason, case): best, median and worst by mean Dice, then the largest gain and loss of each rival."""
    dice = {model: results.case_means(model, "Dice") for model in results.models}
    together = np.mean(list(dice.values()), axis=0)
    ranked = [i for i in np.argsort(together, kind="stable") if np.isfinite(together[i])]
    chosen: dict[int, str] = {}
    if ranked:
        for why, i in (("best case", ranked[-1]), ("median case", ranked[len(ranked) // 2]), ("worst case", ranked[0])):
            chosen.setdefault(int(i), why)
    for model in results.rivals:
        difference = dice[model] - dice[results.baseline]
        order = [i for i in np.argsort(difference, kind="stable") if np.isfinite(difference[i])]
        for why, i, is_so in (("largest gain", order[-1:], 1), ("largest loss", order[:1], -1)):
            if i and difference[i[0]] * is_so > 0:
                chosen.setdefault(
                    int(i[0]), f"{why} of {results.titles[model]} over {results.titles[results.baseline]}"
                )
    return [(why, results.cases[i]) for i, why in chosen.items()]


def panels(
    image_files: Sequence[Path], truth_file: Path, predictions: dict[str, tuple[str, Path]], task: Task
) -> list[Panel]:
    """Draw the panel of the reference, then one for each of `predictions` (model -> caption, file).

    A volume is represented by the slice with most disagreement. If structures are small, only the part of the image
    that contains them is shown.
    """
    for file in image_files:
        check_format(str(file))
    image, _ = task.reader.read_images([str(file) for file in image_files])
    truth = task.reader.read_seg(str(truth_file))[0][0]
    segmentations = {model: task.reader.read_seg(str(file))[0][0] for model, (_, file) in predictions.items()}
    slice_index = most_disagreement(truth, list(segmentations.values()))
    truth = truth[slice_index]
    segmentations = {model: segmentation[slice_index] for model, segmentation in segmentations.items()}
    top, bottom, left, right = window([truth, *segmentations.values()])
    part = (slice(top, bottom), slice(left, right))
    shown = to_rgb(image[:, slice_index])[part]
    scale = SIDE / max(shown.shape[:2])
    size = (max(1, round(shown.shape[0] * scale)), max(1, round(shown.shape[1] * scale)))
    # enlarged without smoothing, to show the pixels that were measured
    picture = resize(shown, size, order=1 if scale < 1 else 0, anti_aliasing=scale < 1)
    background = Image.fromarray((255 * picture).clip(0, 255).astype(np.uint8))
    where = f", slice {slice_index + 1} of {image.shape[1]}" if image.shape[1] > 1 else ""
    made = [_panel(background, f"truth{where}", [(truth[part], None)], task.classes, scale)]
    for model, segmentation in segmentations.items():
        drawn = [(truth[part], TRUTH_COLOR), (segmentation[part], None)]
        made.append(_panel(background, predictions[model][0], drawn, task.classes, scale))
    return made


def most_disagreement(truth: np.ndarray, segmentations: Sequence[np.ndarray]) -> int:
    """Return the index on the first axis at which most pixels differ from the truth, summed over the models."""
    wrong = [(segmentation != truth).sum(axis=(1, 2)) for segmentation in segmentations]
    return int(np.argmax(np.sum(wrong, axis=0)))


def window(segmentations: Sequence[np.ndarray], least: int = 128) -> tuple[int, int, int, int]:
    """Return top, bottom, left, right of a window around all structures, or of the image if the window is large."""
    height, width = segmentations[0].shape
    anywhere = np.any([segmentation > 0 for segmentation in segmentations], axis=0)
    if not anywhere.any():
        return 0, height, 0, width
    edges = []
    for axis, length in ((1, height), (0, width)):
        places = np.flatnonzero(anywhere.any(axis=axis))
        side = max(least, round(1.5 * (places[-1] + 1 - places[0])))
        start = min(max(0, (places[0] + places[-1] + 1 - side) // 2), max(0, length - side))
        edges += [int(start), int(min(length, start + side))]
    top, bottom, left, right = edges
    if (bottom - top) * (right - left) > 0.4 * height * width:
        return 0, height, 0, width
    return top, bottom, left, right


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Convert (channels, H, W) of any range to (H, W, 3) from 0 to 1: RGB as it is, or else the first channel."""
    if len(image) == 3 and image.min() >= 0 and image.max() <= 255:
        rgb, low, high = image, 0.0, 255.0
        bright = float(np.percentile(image, 99.8))
        if bright < 100:  # dark microscopy: increase the contrast
            high = max(bright, high / MAX_BRIGHTENING)
    else:
        rgb = np.repeat(image[:1], 3, axis=0)
        low, high = np.percentile(rgb, (0.5, 99.5))
    return np.moveaxis((rgb - low) / max(high - low, 1e-6), 0, -1).clip(0, 1)


def _panel(
    background: Image.Image,
    caption: str,
    drawn: Sequence[tuple[np.ndarray, str | None]],
    classes: dict[str, Label] | Any,
    scale: float,
) -> Panel:
    picture = background.copy()
    draw = ImageDraw.Draw(picture)
    for segmentation, color in drawn:
        for number, label in enumerate(classes.values()):
            outline = color or CLASS_COLORS[number % len(CLASS_COLORS)]
            draw_contours(draw, region_or_label_to_mask(segmentation, label), outline, scale)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Panel(caption, source, *picture.size)
