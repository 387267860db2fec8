"""Files of prompts, CSV and JSON. Imports nothing heavy.

CSV, one prompt a row, columns in any order, others are left alone:

    image,x0,y0,x1,y1,points,class
    a.png,10,20,110,90,,nucleus
    a.png,,,,,30 40 1;35 80 0,nucleus
    b.png,,,,,,

JSON, the same: [{"image": "a.png", "box": [10, 20, 110, 90], "points": [[30, 40, 1]], "class": "nucleus"}, ...].
`points` and `class` may be missing. A row with nothing but an image says that there is nothing in that image.
"""

from __future__ import annotations

import codecs
import csv
import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_hrmedseg.errors import DataError, format_names
from nnunet_hrmedseg.prompting.prompts import Box, Point, Prompt

__all__ = ["read_prompts"]

SIDES = ("x0", "y0", "x1", "y1")
KEYS = ("image", "box", "points", "class")
OTHER_NAMES = {
    **dict.fromkeys(("bbox", "bboxes", "boxes", "rect", "rectangle", "bounding_box"), "box"),
    **dict.fromkeys(("point", "point_coords", "keypoints", "coordinates"), "points"),
    **dict.fromkeys(("label", "labels", "category", "category_id", "category_name", "classes", "class_id"), "class"),
    "class_name": "class",
}
"""Names that other tools use -> ours. They are refused rather than read: many of them hold another format."""
POINT_LABELS = ("labels", "point_labels")
DELIMITERS = ",;\t"
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read_prompts(file: Path) -> dict[str, list[Prompt]]:
    """Read the prompts of each image, in the order of the file; keys are the paths of the images as they are written.

    CSV may be separated by commas, semicolons or tabs; with semicolons and tabs, numbers may have a decimal comma.

    Raises:
        DataError: No such file, of another format, or rows that cannot be understood (named).
    """
    text = _text(file)
    try:
        entries = _entries_of_json(file, text) if file.suffix.lower() == ".json" else _entries_of_csv(file, text)
    except csv.Error as error:
        raise DataError(f"{file} is no CSV that can be read: {error}.") from error
    prompts: dict[str, list[Prompt]] = {}
    for where, entry in entries:
        image = entry.get("image")
        if not isinstance(image, str) or not image.strip() or not image.isprintable():
            raise DataError(
                f"{where}: there is no image, but {image!r:.100}. Every prompt names the file of its image."
            )
        image_prompts = prompts.setdefault(image.strip(), [])
        prompt = _prompt(where, entry)
        if prompt is not None:
            image_prompts.append(prompt)
    if not prompts:
        raise DataError(f"There are no prompts in {file}.")
    return prompts


def _text(file: Path) -> str:
    """Return the text of a file in UTF-8, UTF-16 or, with a note, Windows-1252, as spreadsheets write them."""
    try:
        content = file.read_bytes()
        if content.startswith(b"PK\x03\x04"):
            raise DataError(f"{file} is a workbook or an archive, not text: export the table as CSV.")
        encoding = next((encoding for mark, encoding in MARKS if content.startswith(mark)), "utf-8")
        if b"\0" in content[:2] and len(content) > 1:  # UTF-16 without a mark
            encoding = "utf-16-le" if content[1] == 0 else "utf-16-be"
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            if encoding != "utf-8":
                raise
            text = content.decode("cp1252")
            print(f"Note: {file} is not UTF-8; it was read as Windows-1252 (Western European).", file=sys.stderr)
            return text
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The prompts {file} cannot be read: {error}. Save them as UTF-8.") from error


# ---- CSV -------------------------------------------------------------------------------------------------------------


def _entries_of_csv(file: Path, text: str) -> list[tuple[str, Mapping[str, Any]]]:
    lines = text.splitlines()
    skipped, delimiter = 0, None
    if lines and (told := re.fullmatch(r'"?sep=([,;\t])"?', lines[0].strip(" "), re.IGNORECASE)):  # of Excel
        skipped, delimiter = 1, told[1]
    delimiter = delimiter or _delimiter(lines[0] if lines else "")
    rows = csv.reader(lines[skipped:], delimiter=delimiter, skipinitialspace=True, strict=True)
    written = next(rows, [])
    columns = [_name(column) for column in written]
    if "image" not in columns or not ({*SIDES} <= {*columns} or "points" in columns):
        raise DataError(
            f"{file} needs the columns image,x0,y0,x1,y1 in its first line, or image,points; class is optional. It has "
            f"{_short(','.join(written)) or 'nothing'}."
        )
    twice = sorted({column for column in columns if column in (*KEYS, *SIDES) and columns.count(column) > 1})
    if twice:
        raise DataError(f"{file} has several columns {format_names(twice)}. Keep one of each.")
    entries: list[tuple[str, Mapping[str, Any]]] = []
    for cells in rows:
        cells = ["" if cell.strip().lower() == "nan" else cell.strip() for cell in cells]  # of pandas
        if not any(cells):
            continue
        where = f"{file}, line {rows.line_num + skipped}"
        if any(cells[len(columns) :]):
            raise DataError(
                f"{where} has more cells than there are columns: {_short(cells)}. A cell that contains {delimiter!r} "
                f'must stand in quotes ("...").'
            )
        row = dict(zip(columns, cells, strict=False))
        entry: dict[str, Any] = {name: cell for name, cell in row.items() if name not in SIDES}
        sides = [_with_point(row.get(side, ""), delimiter) for side in SIDES]
        entry["box"] = sides if any(sides) else None
        points = _with_point(row.get("points", ""), delimiter).split(";")
        entry["points"] = [point.split() for point in points if point.strip()]
        if "class" in entry:
            entry["class"] = re.sub(r"(?<=\d),(?=0+$)", ".", entry["class"]) if delimiter != "," else entry["class"]
        entries.append((where, entry))
    return entries


def _delimiter(header: str) -> str:
    """Return the delimiter with which a header has the most known columns."""

    def known(delimiter: str) -> int:
        try:
            names = next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])
        except csv.Error:
            return 0
        return len({_name(name) for name in names} & {*KEYS, *SIDES})

    return max(DELIMITERS, key=known)


def _name(column: str) -> str:
    return column.strip().lower()


def _with_point(text: str, delimiter: str) -> str:
    """Numbers with a decimal point, where the delimiter leaves no doubt about the comma."""
    return text if delimiter == "," else re.sub(r"(?<=\d),(?=\d)", ".", text)


# ---- JSON ------------------------------------------------------------------------------------------------------------


def _entries_of_json(file: Path, text: str) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataError(f"{file} is no JSON: {error}") from error
    except RecursionError:
        raise DataError(f"{file} is nested too deeply to be a list of prompts.") from None
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise DataError(f'{file} must be a list of prompts: [{{"image": "a.png", "box": [x0, y0, x1, y1]}}, ...].')
    entries: list[tuple[str, Mapping[str, Any]]] = []
    for number, entry in enumerate(content, start=1):
        where = f"{file}, entry {number}"
        named = {_name(key): value for key, value in entry.items()}
        if len(named) < len(entry):
            raise DataError(f"{where} has a key twice, in capitals and not: {_short(format_names(list(entry)))}.")
        entries.append((where, named))
    return entries


# ---- both ------------------------------------------------------------------------------------------------------------


def _prompt(where: str, entry: Mapping[str, Any]) -> Prompt | None:
    """Return the prompt of an entry; None if the entry means that the image has no object."""
    box, points = entry.get("box"), entry.get("points") or ()
    is_empty = not box and not points
    others = [name for name, value in entry.items() if name not in ("image", "box", "points") and _is_given(value)]
    if is_empty and others:
        raise DataError(
            f"{where} has neither a box nor points, but {_short(format_names(others))}. A prompt needs "
            f"{', '.join(SIDES)} (in JSON, box: [x0, y0, x1, y1]) or points; for an image with nothing in it, give "
            f"the image alone."
        )
    if is_empty:
        return None
    for name in others:
        if points and name in POINT_LABELS:
            raise DataError(f"{where} has {name!r}: the label of a point stands with it, as x, y, label.")
        ours = OTHER_NAMES.get(name)
        if ours is not None and not (_is_given(entry.get(ours)) and entry.get(ours) != []):
            raise DataError(f"{where} has {name!r}, which is not read. If it means {ours!r}, call it so.")
    try:
        if not all(isinstance(value, list | tuple) for value in (box or [], points, *points)):
            raise ValueError("they are no lists of numbers")
        placed = None if box is None else _box(box)
        read = tuple(_point(point) for point in points)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{where}: box {_short(entry.get('box'))} and points {_short(entry.get('points'))} cannot be understood "
            f"({_short(error)}). A box is x0, y0, x1, y1; a point is x, y, label."
        ) from error
    return Prompt(placed, read, _category(where, entry.get("class")), where)


def _is_given(value: object) -> bool:
    return value not in (None, "") and not (isinstance(value, float) and math.isnan(value))


def _box(values: list) -> Box:
    x0, y0, x1, y1 = map(_number, values)
    return x0, y0, x1, y1


def _point(values: list) -> Point:
    numbers = [_number(value) for value in values]
    x, y, label = numbers if len(numbers) != 2 else [*numbers, 1.0]
    return x, y, label


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or "_" in str(value):
        raise ValueError(f"{value!r:.100} is not a number")
    return float(value)


def _category(where: str, value: object) -> str:
    """Return the name of a class; whole numbers may be written as 2 or, as pandas does, 2.0."""
    if not _is_given(value):
        return "object"
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip().isprintable():
        raise DataError(f"{where}: the class is {value!r:.100}. Give it a name or a number.")
    text = str(value).strip()
    return text.split(".")[0] if re.fullmatch(r"\d+\.0+", text) else text or "object"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."
