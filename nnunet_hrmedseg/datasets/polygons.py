"""Label maps out of polygons: a COCO file, or labelme's files, one for each image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.files import json_object

__all__ = ["Shape", "is_annotation_source", "read_shapes"]

FILLED = ("polygon", "rectangle", "circle")


@dataclass(frozen=True)
class Shape:
    """An outline of a class: its points (x, y) in pixels, or runs of pixels (COCO's uncompressed RLE)."""

    category: str
    points: tuple[tuple[float, float], ...] = ()
    counts: tuple[int, ...] = ()

    def mask(self, height: int, width: int) -> np.ndarray:
        """Return (H, W) bool.

        Raises:
            HRMedSegError: runs that do not fill the image.
        """
        if self.counts:
            if sum(self.counts) != height * width:
                raise HRMedSegError(f"a run-length mask is of {sum(self.counts)} pixels, the image of {height * width}")
            values = np.repeat(np.arange(len(self.counts)) % 2, self.counts)
            return values.reshape(width, height).T.astype(bool)
        drawn = Image.new("1", (width, height))
        ImageDraw.Draw(drawn).polygon(self.points, fill=1, outline=1)
        return np.asarray(drawn)


def is_annotation_source(place: Path) -> bool:
    """Whether this is a COCO file, or a folder with labelme's files."""
    if place.is_file():
        return place.suffix.lower() == ".json"
    return place.is_dir() and any(place.glob("*.json")) and not any(place.glob("dataset.json"))


def read_shapes(place: Path) -> tuple[dict[str, list[Shape]], list[str], list[str]]:
    """Read all shapes.

    Returns:
        file name of an image (without folders) -> its shapes, classes in their order, and notes on what was left out.

    Raises:
        HRMedSegError: a file that is not of the format.
    """
    if place.is_file():
        return _read_coco(place)
    return _read_labelme(sorted(place.glob("*.json")))


def _read_coco(file: Path) -> tuple[dict[str, list[Shape]], list[str], list[str]]:
    content = json_object(file, "COCO file")
    try:
        categories = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        images = {entry["id"]: _base_name(entry["file_name"]) for entry in content["images"]}
        shapes: dict[str, list[Shape]] = {name: [] for name in images.values()}
        notes: list[str] = []
        boxes = 0
        for annotation in content["annotations"]:
            category, name = categories[annotation["category_id"]], images[annotation["image_id"]]
            segmentation = annotation.get("segmentation")
            if isinstance(segmentation, Mapping):
                if isinstance(segmentation["counts"], str):
                    raise HRMedSegError(
                        f"{file} holds compressed run-length masks (image {name}). Decode them with pycocotools "
                        f"(annToMask) and save the masks as PNG."
                    )
                shapes[name].append(Shape(category, counts=tuple(map(int, segmentation["counts"]))))
            elif segmentation:
                shapes[name] += [Shape(category, _pairs(polygon)) for polygon in segmentation]
            else:
                boxes += 1
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise HRMedSegError(f"{file} is not a COCO file ({type(error).__name__}: {error}).") from error
    if boxes:
        notes.append(f"{boxes} annotations are boxes without an outline and were left out")
    used = {shape.category for own in shapes.values() for shape in own}
    return shapes, [name for name in categories.values() if name in used], notes


def _read_labelme(files: Sequence[Path]) -> tuple[dict[str, list[Shape]], list[str], list[str]]:
    shapes: dict[str, list[Shape]] = {}
    left_out: dict[str, int] = defaultdict(int)
    for file in files:
        content = json_object(file, "labelme file")
        try:
            own = []
            for entry in content["shapes"]:
                kind = entry.get("shape_type", "polygon")
                if kind not in FILLED:
                    left_out[kind] += 1
                    continue
                own.append(Shape(str(entry["label"]), _outline(kind, entry["points"])))
            shapes[_base_name(content.get("imagePath") or file.stem)] = own
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise HRMedSegError(f"{file} is not a labelme file ({type(error).__name__}: {error}).") from error
    notes = [f"{count} shapes of the type {kind} have no area and were left out" for kind, count in left_out.items()]
    return shapes, sorted({shape.category for own in shapes.values() for shape in own}), notes


def _outline(kind: str, points: Any) -> tuple[tuple[float, float], ...]:
    if kind == "polygon":
        return _pairs([value for point in points for value in point])
    (x0, y0), (x1, y1) = points
    if kind == "rectangle":
        return (x0, y0), (x1, y0), (x1, y1), (x0, y1)
    angles, radius = np.linspace(0, 2 * np.pi, 128, endpoint=False), float(np.hypot(x1 - x0, y1 - y0))
    return tuple((float(x0 + radius * np.cos(a)), float(y0 + radius * np.sin(a))) for a in angles)


def _pairs(values: Sequence[float]) -> tuple[tuple[float, float], ...]:
    if len(values) < 6 or len(values) % 2:
        raise ValueError(f"an outline of {len(values)} numbers; at least three pairs are needed")
    return tuple((float(x), float(y)) for x, y in zip(values[::2], values[1::2], strict=True))


def _base_name(path: str) -> str:
    return str(path).replace("\\", "/").rpartition("/")[2]
