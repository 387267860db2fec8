"""Pictures of masks on their image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from nnunet_hrmedseg.io.pictures import class_colors, outline
from nnunet_hrmedseg.prompting.prompts import Prompt

__all__ = ["draw_overlay"]

OPACITY = 0.35


def draw_overlay(
    image: Image.Image, objects: np.ndarray, values: Sequence[int], prompts: Sequence[Prompt]
) -> Image.Image:
    """Draw objects in the colors of their classes, with outlines, boxes and points, on an image.

    Args:
        image: The image, of any mode.
        objects: (H, W), 0 or the number of an object, counted from 1.
        values: class of each object, counted from 1.
        prompts: of each object.
    """
    object_colors = np.concatenate([np.zeros((1, 3), np.uint8), class_colors(np.array(values, int))])
    picture = np.array(image.convert("RGB"))
    inside = objects > 0
    edge = outline(objects)
    # in floats no more than what is painted: an image may have 20,000 x 20,000 pixels
    picture[inside] = ((1 - OPACITY) * picture[inside] + OPACITY * object_colors[objects[inside]]).round()
    picture[edge] = object_colors[objects[edge]]
    drawn = Image.fromarray(picture)
    draw = ImageDraw.Draw(drawn)
    line = max(1, round(max(image.size) / 700))
    for prompt, color in zip(prompts, object_colors[1:].astype(int).tolist(), strict=True):
        if prompt.box is not None:
            x0, y0, x1, y1 = prompt.box
            draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=tuple(color), width=line)
        for x, y, label in prompt.points:
            radius = 3 * line
            place = (x - radius, y - radius, x + radius, y + radius)
            draw.ellipse(place, fill="#00c000" if label else "#e00000", outline="white", width=line)
    return drawn
