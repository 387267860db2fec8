"""Prompts: boxes and points, from the command line too, and whether they lie in their image. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nnunet_hrmedseg.errors import DataError, HRMedSegError

__all__ = [
    "Box",
    "Point",
    "Prompt",
    "check_pixels",
    "check_some_point_inside",
    "parse_box",
    "parse_point",
    "placed_box",
    "placed_points",
]

Box = tuple[float, float, float, float]
Point = tuple[float, float, float]

ROUNDING = 0.5  # pixels by which a prompt may lie outside: it is clipped
CORNERS = "A box is x0,y0,x1,y1: left, top, right and bottom edge in pixels, not width and height."


@dataclass(frozen=True)
class Prompt:
    """What is asked for: the object in a box, at points, or both.

    Attributes:
        box: x0, y0, x1, y1 in pixels of the image, the rectangle's edges.
        points: x, y in pixels of the image, and 1 in the object or 0 beside it.
        category: name or number of its class.
        source: where it was written, for messages.
    """

    box: Box | None = None
    points: tuple[Point, ...] = ()
    category: str = "object"
    source: str = ""

    def placed(self, size: tuple[int, int], *, normalized: bool = False) -> Prompt:
        """Return the prompt in pixels of an image of `size` (H, W), clipped where it is outside by a rounding error.

        Args:
            size: height and width of the image in pixels.
            normalized: the coordinates are parts of the image's width and height, 0 to 1, and not pixels.

        Raises:
            DataError: The prompt does not lie in the image, has no extent, names nothing inside the object, or
                looks as if it were in the other unit.
        """
        try:
            prompt = self._in_pixels(size) if normalized else self
            if not normalized:
                advice = "Add --normalized if they are parts of the image's width and height."
                check_pixels(self._numbers, size, advice)
            box = None if prompt.box is None else placed_box(prompt.box, size)
            points = placed_points(prompt.points, size)
            if box is None:
                check_some_point_inside(points)
        except HRMedSegError as error:
            raise DataError(f"{self.source}: {error}" if self.source else str(error)) from error
        return replace(self, box=box, points=points)

    @property
    def _numbers(self) -> list[float]:
        return [*(self.box or ()), *(value for point in self.points for value in point[:2])]

    def _in_pixels(self, size: tuple[int, int]) -> Prompt:
        height, width = size
        numbers = self._numbers
        if not all(-0.01 <= value <= 1.01 for value in numbers):
            raise DataError(
                f"{_listed(numbers)} are not all between 0 and 1, as --normalized says. Leave it out for pixels."
            )
        box = None
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            box = x0 * width, y0 * height, x1 * width, y1 * height
        return replace(self, box=box, points=tuple((x * width, y * height, label) for x, y, label in self.points))


def placed_box(box: Box, size: tuple[int, int]) -> Box:
    """Return a box in an image of `size` (H, W), clipped to it where it is outside by less than half a pixel.

    Raises:
        DataError: The box is inverted, empty, or reaches farther out of the image.
    """
    height, width = size
    if not all(map(math.isfinite, box)):
        raise DataError(f"The box {_listed(box)} has values that are no numbers.")
    x0, x1 = (_clipped(value, width) for value in box[0::2])
    y0, y1 = (_clipped(value, height) for value in box[1::2])
    if not (0 <= min(x0, x1) and max(x0, x1) <= width and 0 <= min(y0, y1) and max(y0, y1) <= height):
        raise DataError(
            f"The box {_listed(box)} reaches out of the image, which is {width} pixels wide and {height} high. "
            f"{CORNERS}"
        )
    if x0 >= x1 or y0 >= y1:
        raise DataError(
            f"The box {_listed(box)} is empty or inverted: x0 must be less than x1, and y0 less than y1. {CORNERS}"
        )
    return x0, y0, x1, y1


def placed_points(points: Sequence[Point], size: tuple[int, int]) -> tuple[Point, ...]:
    """Return points in an image of `size` (H, W), clipped to it where they are outside by less than half a pixel.

    Raises:
        DataError: A point lies farther outside, or its label is not 0 or 1.
    """
    height, width = size
    placed = []
    for point in points:
        x, y, label = _clipped(point[0], width), _clipped(point[1], height), point[2]
        if not (0 <= x <= width and 0 <= y <= height):
            raise DataError(
                f"The point {_listed(point[:2])} is outside of the image, which is {width} pixels wide and {height} "
                f"high."
            )
        if label not in (0, 1):
            raise DataError(f"The label of the point {_listed(point)} must be 1 (in the object) or 0 (beside it).")
        placed.append((x, y, label))
    return tuple(placed)


def check_pixels(numbers: Sequence[float], size: tuple[int, int], advice: str) -> None:
    """Refuse coordinates that lie within the first pixel: they are probably parts of the image's width and height.

    Args:
        numbers: coordinates of boxes and points.
        size: height and width of the image in pixels.
        advice: what to do, for the message.

    Raises:
        DataError: All are from 0 to 1, and some in between or the corners of a box around everything.
    """
    between = any(0 < value < 1 for value in numbers) or list(numbers) == [0, 0, 1, 1]
    if between and all(0 <= value <= 1 for value in numbers) and max(size) > 1:
        raise DataError(f"{_listed(numbers)} would be within the first pixel of the image. {advice}")


def check_some_point_inside(points: Sequence[Sequence[float]]) -> None:
    """Refuse a prompt that says only what the object is not.

    Raises:
        DataError: All points have label 0; x, y, label each.
    """
    if points and not any(point[2] for point in points):
        raise DataError(
            f"All points ({'; '.join(_listed(point[:2]) for point in points[:5])}) have label 0, beside the object: "
            f"give a box, or a point in the object (x,y,1)."
        )


def parse_box(text: str) -> Box:
    """`x0,y0,x1,y1`. Raises ValueError."""
    x0, y0, x1, y1 = map(float, text.split(","))
    return x0, y0, x1, y1


def parse_point(text: str) -> Point:
    """`x,y` or `x,y,label`. Raises ValueError."""
    numbers = [float(number) for number in text.split(",")]
    x, y, label = numbers if len(numbers) != 2 else [*numbers, 1.0]
    return x, y, label


def _clipped(value: float, end: float) -> float:
    if -ROUNDING < value < 0:
        return 0.0
    return float(end) if end < value < end + ROUNDING else value


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:.10g}" for value in values[:12])
