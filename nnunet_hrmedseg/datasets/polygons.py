"""Read polygons from a COCO file, or from labelme's files, one for each image."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from nnunet_hrmedseg.datasets.pixels import composed, is_image_file
from nnunet_hrmedseg.errors import DataError, HRMedSegError, format_shape
from nnunet_hrmedseg.io.files import read_json_object

__all__ = ["Annotation", "Shape", "is_annotation_source", "read_annotations"]

FILLED = ("polygon", "rectangle", "circle")
MIN_NUMBERS = 6  # of an outline: three points


@dataclass(frozen=True)
class Shape:
    """A region of a class.

    Attributes:
        category: name of the class.
        points: outline (x, y) in pixels.
        counts: runs of pixels (COCO's uncompressed RLE), instead of an outline.
        extent: (height, width) of the image that the runs belong to, if known.
        pixels: (H, W) bool (labelme's mask), instead of an outline.
        corner: (x, y) of their upper left pixel.
    """

    category: str
    points: tuple[tuple[float, float], ...] = ()
    counts: tuple[int, ...] = ()
    extent: tuple[int, int] | None = None
    pixels: np.ndarray | None = None
    corner: tuple[int, int] = (0, 0)

    def mask(self, height: int, width: int) -> np.ndarray:
        """Return (H, W) bool.

        Raises:
            DataError: runs that do not fill the image.
        """
        if self.counts:
            if self.extent not in (None, (height, width)):
                raise DataError(
                    f"a run-length mask has {format_shape(self.extent or ())} pixels, but the image has "
                    f"{format_shape((height, width))}"
                )
            if sum(self.counts) != height * width:
                raise DataError(f"a run-length mask has {sum(self.counts)} pixels, but the image has {height * width}")
            values = np.repeat(np.arange(len(self.counts)) % 2, self.counts)
            return values.reshape(width, height).T.astype(bool)
        if self.pixels is not None:
            result, (x, y) = np.zeros((height, width), bool), self.corner
            own = self.pixels[max(0, -y) :, max(0, -x) :]
            place = result[max(0, y) :, max(0, x) :][: own.shape[0], : own.shape[1]]
            place[:] = own[: place.shape[0], : place.shape[1]]
            return result
        drawn = Image.new("1", (width, height))
        ImageDraw.Draw(drawn).polygon(self.points, fill=1, outline=1)
        return np.asarray(drawn)


@dataclass(frozen=True)
class Annotation:
    """The shapes of one image.

    Attributes:
        paths: possible paths of the image, the most reliable first, with / between folders.
        size: (height, width) of the image when it was annotated; None if unknown.
        shapes: later shapes cover earlier ones.
    """

    paths: tuple[str, ...]
    size: tuple[int, int] | None = None
    shapes: list[Shape] = field(default_factory=list)


def is_annotation_source(place: Path) -> bool:
    """Return whether this is a COCO file, or a folder of labelme files."""
    if place.is_file():
        return place.suffix.lower() == ".json"
    if not place.is_dir() or any(place.rglob("dataset.json")):
        return False
    files = _json_files(place)
    masks = any(is_image_file(file) for file in place.rglob("*"))
    return bool(files) and (not masks or any(map(_has_shapes, files)))


def read_annotations(place: Path) -> tuple[list[Annotation], list[str], list[str]]:
    """Read all shapes.

    Returns:
        annotated images, classes in order, and notes on what was left out.

    Raises:
        DataError: a file that does not have the format.
    """
    if place.is_file():
        return _read_coco(place)
    return _read_labelme(_json_files(place), place)


def _json_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*.json") if not file.name.startswith("."))


def _has_shapes(file: Path) -> bool:
    try:
        return isinstance(read_json_object(file, "labelme file").get("shapes"), list)
    except HRMedSegError:
        return False


def _read_coco(file: Path) -> tuple[list[Annotation], list[str], list[str]]:
    content = read_json_object(file, "COCO file")
    left_out: Counter[str] = Counter()
    try:
        categories = {entry["id"]: composed(str(entry["name"])) for entry in content["categories"]}
        images = {}
        for entry in content["images"]:
            extent = _extent(entry.get("height"), entry.get("width"))
            images[entry["id"]] = Annotation((_slashes(entry["file_name"]),), extent)
        if len(images) < len(content["images"]):
            raise ValueError("several images have the same id")
        for annotation in content["annotations"]:
            category, image = categories[annotation["category_id"]], images[annotation["image_id"]]
            segmentation = annotation.get("segmentation")
            if isinstance(segmentation, Mapping):
                if isinstance(segmentation["counts"], str):
                    raise DataError(
                        f"{file} holds compressed run-length masks (image {image.paths[0]}). Decode them with "
                        f"pycocotools (annToMask) and save the masks as PNG."
                    )
                counts, extent = tuple(map(int, segmentation["counts"])), _extent(*segmentation.get("size", (0, 0)))
                image.shapes.append(Shape(category, counts=counts, extent=extent))
            elif segmentation:
                for polygon in segmentation:
                    _append_outline(image.shapes, category, polygon, left_out)
            else:
                left_out["boxes without an outline"] += 1
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{file} is not a COCO file ({type(error).__name__}: {error}).") from error
    used = {shape.category for image in images.values() for shape in image.shapes}
    numbers = Counter(name for name in categories.values() if name in used)
    twice = [
        f"{count} categories have the name {name} and are one class" for name, count in numbers.items() if count > 1
    ]
    return list(images.values()), list(numbers), [*twice, *_left_out(left_out)]


def _read_labelme(files: Sequence[Path], folder: Path) -> tuple[list[Annotation], list[str], list[str]]:
    annotations: list[Annotation] = []
    left_out: Counter[str] = Counter()
    for file in files:
        content = read_json_object(file, "labelme file")
        try:
            # labelme finds the image by the name of its file; the path in the file may be outdated
            paths = [_slashes(file.relative_to(folder).with_suffix("").as_posix())]
            if content.get("imagePath"):
                paths.append(_slashes(content["imagePath"]))
            own = Annotation(tuple(paths), _extent(content.get("imageHeight"), content.get("imageWidth")))
            for entry in content["shapes"]:
                kind, name = entry.get("shape_type") or "polygon", composed(str(entry["label"]))
                if kind == "mask":
                    own.shapes.append(_labelme_mask(name, entry))
                elif kind == "polygon" or (kind == "rectangle" and len(entry["points"]) == 4):
                    numbers = [value for point in entry["points"] for value in point]
                    _append_outline(own.shapes, name, numbers, left_out)
                elif kind in FILLED:
                    own.shapes.append(Shape(name, _outline(kind, entry["points"])))
                else:
                    left_out[f"shapes of the type {kind}, which have no area,"] += 1
            annotations.append(own)
        except (AttributeError, KeyError, TypeError, ValueError, IndexError, OSError) as error:
            raise DataError(f"{file} is not a labelme file ({type(error).__name__}: {error}).") from error
    return annotations, sorted({shape.category for own in annotations for shape in own.shapes}), _left_out(left_out)


def _labelme_mask(category: str, entry: Mapping[str, Any]) -> Shape:
    """Decode a mask of labelme's AI tools: a PNG of the part of the image that starts at the first point."""
    with Image.open(BytesIO(base64.b64decode(entry["mask"])), formats=["PNG"]) as image:
        pixels = np.asarray(image.convert("L")) > 0
    x, y = (round(float(value)) for value in entry["points"][0])
    return Shape(category, pixels=pixels, corner=(x, y))


def _append_outline(shapes: list[Shape], category: str, numbers: Sequence[float], left_out: Counter[str]) -> None:
    """Add the outline x, y, x, y, ... Outlines of one or two points, made by mistake, are counted instead."""
    if len(numbers) % 2:
        raise ValueError(f"an outline has {len(numbers)} numbers, which are not pairs")
    if len(numbers) < MIN_NUMBERS:
        left_out["outlines with fewer than three points"] += 1
        return
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    shapes.append(Shape(category, tuple((float(x), float(y)) for x, y in pairs)))


def _outline(kind: str, points: Any) -> tuple[tuple[float, float], ...]:
    (x0, y0), (x1, y1) = points
    if kind == "rectangle":
        return (x0, y0), (x1, y0), (x1, y1), (x0, y1)
    angles, radius = np.linspace(0, 2 * np.pi, 128, endpoint=False), float(np.hypot(x1 - x0, y1 - y0))
    return tuple((float(x0 + radius * np.cos(a)), float(y0 + radius * np.sin(a))) for a in angles)


def _extent(height: Any, width: Any) -> tuple[int, int] | None:
    return (int(height), int(width)) if height and width else None


def _left_out(counts: Counter[str]) -> list[str]:
    return [f"{what} were left out ({count})" for what, count in counts.items()]


def _slashes(path: Any) -> str:
    return composed(str(path).replace("\\", "/"))
