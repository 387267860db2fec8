"""Prompts: from the command line, CSV and JSON files; and whether they lie in the image. Imports nothing heavy.

CSV, one prompt a row, columns in any order, others are left alone:

    image,x0,y0,x1,y1,points,class
    a.png,10,20,110,90,,nucleus
    a.png,,,,,30 40 1;35 80 0,nucleus
    b.png,,,,,,

JSON, the same: [{"image": "a.png", "box": [10, 20, 110, 90], "points": [[30, 40, 1]], "class": "nucleus"}, ...].
`points` and `class` may be missing. A row with an image and no prompt says that there is nothing in that image.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_hrmedseg.errors import HRMedSegError

__all__ = ["Box", "Point", "Prompt", "check_box", "check_points", "parse_box", "parse_point", "read_prompts"]

Box = tuple[float, float, float, float]
Point = tuple[float, float, float]

SIDES = ("x0", "y0", "x1", "y1")


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

    def check(self, size: tuple[int, int]) -> None:
        """Raises HRMedSegError if it does not lie in an image of `size` (H, W)."""
        try:
            if self.box is not None:
                check_box(self.box, size)
            check_points(self.points, size)
        except HRMedSegError as error:
            raise HRMedSegError(f"{self.source}: {error}" if self.source else str(error)) from error


def check_box(box: Box, size: tuple[int, int]) -> None:
    """Raises HRMedSegError for a box that is inverted, empty, or not in an image of `size` (H, W)."""
    x0, y0, x1, y1 = box
    height, width = size
    if not all(map(math.isfinite, box)):
        raise HRMedSegError(f"The box {_said(box)} has values that are no numbers.")
    if x0 >= x1 or y0 >= y1:
        raise HRMedSegError(f"The box {_said(box)} is empty or inverted: x0 must be less than x1, and y0 than y1.")
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        raise HRMedSegError(
            f"The box {_said(box)} reaches out of the image, which is {width} pixels wide and {height} high. Boxes are "
            f"x0,y0,x1,y1 in pixels."
        )


def check_points(points: Sequence[Point], size: tuple[int, int]) -> None:
    """Raises HRMedSegError for a point that is not in an image of `size` (H, W), or whose label is not 0 or 1."""
    height, width = size
    for point in points:
        x, y, label = point
        if not (0 <= x <= width and 0 <= y <= height):
            raise HRMedSegError(
                f"The point {_said(point[:2])} is outside of the image, which is {width} pixels wide and {height} high."
            )
        if label not in (0, 1):
            raise HRMedSegError(f"The label of the point {_said(point)} must be 1 (in the object) or 0 (beside it).")


def parse_box(text: str) -> Box:
    """`x0,y0,x1,y1`. Raises ValueError."""
    x0, y0, x1, y1 = map(float, text.split(","))
    return x0, y0, x1, y1


def parse_point(text: str) -> Point:
    """`x,y` or `x,y,label`. Raises ValueError."""
    numbers = [float(number) for number in text.split(",")]
    x, y, label = numbers if len(numbers) != 2 else [*numbers, 1.0]
    return x, y, label


def read_prompts(file: Path) -> dict[str, list[Prompt]]:
    """The prompts of each image, in the order of the file; the image's path as it is written there.

    Raises:
        HRMedSegError: no such file, of another format, or rows that cannot be understood (named).
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise HRMedSegError(f"The prompts {file} cannot be read: {error}") from error
    try:
        entries = _entries_of_json(file, text) if file.suffix.lower() == ".json" else _entries_of_csv(file, text)
    except csv.Error as error:
        raise HRMedSegError(f"{file} is no CSV that can be read: {error}.") from error
    prompts: dict[str, list[Prompt]] = {}
    for where, entry in entries:
        image = entry.get("image")
        if not isinstance(image, str) or not image.strip() or not image.isprintable():
            raise HRMedSegError(
                f"{where}: there is no image, but {image!r:.100}. Every prompt names the file of its image."
            )
        of_image = prompts.setdefault(image.strip(), [])
        prompt = _prompt(where, entry)
        if prompt is not None:
            of_image.append(prompt)
    if not prompts:
        raise HRMedSegError(f"There are no prompts in {file}.")
    return prompts


def _entries_of_csv(file: Path, text: str) -> list[tuple[str, Mapping[str, Any]]]:
    rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
    columns = set(rows.fieldnames or ())
    if "image" not in columns or not ({*SIDES} <= columns or "points" in columns):
        raise HRMedSegError(
            f"{file} needs the columns image,x0,y0,x1,y1 in its first line, or image,points; class is optional. It has "
            f"{_short(','.join(rows.fieldnames or ())) or 'nothing'}."
        )
    entries: list[tuple[str, Mapping[str, Any]]] = []
    for row in rows:
        where = f"{file}, line {rows.line_num}"
        sides = [(row.get(side) or "").strip() for side in SIDES]
        points = [point.split() for point in (row.get("points") or "").split(";") if point.strip()]
        box = sides if any(sides) else None
        entries.append((where, {"image": row["image"], "box": box, "points": points, "class": row.get("class")}))
    return entries


def _entries_of_json(file: Path, text: str) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise HRMedSegError(f"{file} is no JSON: {error}") from error
    except RecursionError:
        raise HRMedSegError(f"{file} is nested too deeply to be a list of prompts.") from None
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise HRMedSegError(f'{file} must be a list of prompts: [{{"image": "a.png", "box": [x0, y0, x1, y1]}}, ...].')
    return [(f"{file}, entry {number}", entry) for number, entry in enumerate(content, start=1)]


def _prompt(where: str, entry: Mapping[str, Any]) -> Prompt | None:
    box, points = entry.get("box"), entry.get("points") or ()
    if not box and not points:
        return None
    try:
        if not all(isinstance(value, list | tuple) for value in (box or [], points, *points)):
            raise ValueError("they are no lists of numbers")
        if box is not None:
            x0, y0, x1, y1 = (float(side) for side in box)
            box = x0, y0, x1, y1
        read = tuple(parse_point(",".join(map(str, point))) for point in points)
    except (TypeError, ValueError, OverflowError) as error:
        raise HRMedSegError(
            f"{where}: box {_short(entry.get('box'))} and points {_short(entry.get('points'))} cannot be understood "
            f"({_short(error)}). A box is x0, y0, x1, y1; a point is x, y, label."
        ) from error
    category = entry.get("class")
    if not isinstance(category, str | int | float | None) or not str(category or "").strip().isprintable():
        raise HRMedSegError(f"{where}: the class is {category!r:.100}. Give it a name or a number.")
    return Prompt(box, read, str(category).strip() if category not in (None, "") else "object", where)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _said(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
