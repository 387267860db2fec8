"""Convert masks to label maps: 0 and 255, indices, palettes, colors, or one file for each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageOps

from nnunet_hrmedseg.datasets.matching import Case
from nnunet_hrmedseg.datasets.pixels import orientation, read_image
from nnunet_hrmedseg.errors import DataError, PlanError, format_names
from nnunet_hrmedseg.io.image_formats import FORMATS, allow_large_images

__all__ = ["JPEG", "Coding", "Color", "as_values", "find_coding", "number_objects", "parse_colors", "read_mask"]

MAX_CLASSES = 100
JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
Color = tuple[int, int, int]
BLACK: Color = (0, 0, 0)


@dataclass(frozen=True)
class Coding:
    """The meaning of the masks' pixels.

    Attributes:
        kind: "values", "colors" or "files": by pixel value, by color, or one file for each class, whose pixels are
            not 0.
        labels: class -> value in the dataset, background included.
        label_of_value: pixel value -> label.
        label_of_color: color -> label.
        threshold: pixels of at least this value are class 1.
    """

    kind: str
    labels: dict[str, int]
    label_of_value: dict[int, int] = field(default_factory=dict)
    label_of_color: dict[Color, int] = field(default_factory=dict)
    threshold: int | None = None

    def describe(self) -> str:
        """Return one line for the summary."""
        if self.threshold is not None:
            return f"pixels of at least {self.threshold} are {self.classes[0]}"
        if self.kind == "colors":
            names = {value: name for name, value in self.labels.items()}
            return ", ".join(f"#{r:02x}{g:02x}{b:02x} {names[v]}" for (r, g, b), v in self.label_of_color.items())
        if self.kind == "files":
            return "one file for each class" if len(self.classes) > 1 else "one file for each object"
        return ", ".join(f"{value} -> {label}" for value, label in self.label_of_value.items())

    @property
    def classes(self) -> list[str]:
        """Names of the classes without background."""
        return [name for name, value in self.labels.items() if value]

    def label_map(self, masks: Sequence[tuple[np.ndarray, str | None]]) -> np.ndarray:
        """Return the label map (H, W) uint8 of one case; where masks overlap, the later class wins.

        Args:
            masks: pixels (H, W) or (H, W, 3) of each file, and its class if files are classes.

        Raises:
            DataError: a value without a class.
        """
        result = np.zeros(masks[0][0].shape[:2], np.uint8)
        for pixels, name in sorted(masks, key=lambda mask: self.labels.get(mask[1] or "", 1)):
            if self.threshold is not None:
                result[as_values(pixels) >= self.threshold] = 1
            elif self.kind == "files":
                result[as_values(pixels) > 0] = self.labels[name] if name else 1
            elif self.kind == "colors":
                for color, label in self.label_of_color.items():
                    result[(pixels == np.array(color, pixels.dtype)).all(-1)] = label
            else:
                values = as_values(pixels)
                unknown = sorted(set(np.unique(values).tolist()) - set(self.label_of_value))
                if unknown:
                    raise DataError(
                        f"it has the values {format_names(list(map(str, unknown)))}, which belong to no class"
                    )
                for value, label in self.label_of_value.items():
                    if label:
                        result[values == value] = label
        return result


def parse_colors(texts: Iterable[str]) -> dict[str, Color]:
    """Parse NAME=COLOR, where a color is #ff0000, a name, or r,g,b.

    Raises:
        PlanError: a text that is not of this form.
    """
    colors: dict[str, Color] = {}
    for text in texts:
        name, _, color = text.rpartition("=")
        try:
            rgb = tuple(map(int, color.split(","))) if "," in color else ImageColor.getrgb(color)[:3]
            if not name or len(rgb) != 3 or not all(0 <= value <= 255 for value in rgb):
                raise ValueError
        except ValueError:
            raise PlanError(f"{text!r} is not NAME=COLOR, such as disc=#ff0000 or disc=255,0,0.") from None
        colors[name] = rgb[0], rgb[1], rgb[2]
    return colors


def read_mask(file: Path, *, color: bool = False) -> np.ndarray:
    """Read a mask.

    Args:
        file: to read.
        color: return colors in any case.

    Returns:
        (H, W) values, for a palette file its indices; or (H, W, 3) for a mask in color.

    Raises:
        DataError: the file cannot be read.
    """
    pixels = None if color else _palette_indices(file)
    if pixels is None:
        pixels = read_image(file)
    if color:
        return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)
    return as_values(pixels) if pixels.ndim == 3 and (pixels == pixels[..., :1]).all() else pixels


def as_values(pixels: np.ndarray) -> np.ndarray:
    """Return (H, W). A color image becomes its largest channel, which is 0 only for black."""
    return pixels.max(-1) if pixels.ndim == 3 else pixels


def number_objects(pixels: np.ndarray) -> np.ndarray:
    """Return (H, W) int32: the values or colors of a mask, numbered from 1, and 0 for the value 0 or black."""
    if pixels.ndim == 3:
        red, green, blue = (pixels[..., i].astype(np.int64) for i in range(3))
        pixels = (red << 32) + (green << 16) + blue
    values, numbered = np.unique(pixels, return_inverse=True)
    return (numbered.reshape(pixels.shape) + (values[0] != 0)).astype(np.int32)


def _palette_indices(file: Path) -> np.ndarray | None:
    try:
        with allow_large_images(), Image.open(file, formats=FORMATS) as image:
            if image.mode == "P":
                return np.asarray(ImageOps.exif_transpose(image) if orientation(file) != 1 else image)
    except Exception:  # another format, or damaged: read_image reports it
        pass
    return None


def find_coding(
    cases: Sequence[Case],
    *,
    classes: Sequence[str] = (),
    names: Sequence[str] = (),
    colors: Mapping[str, Color] | None = None,
    threshold: int | None = None,
    ignore: int | None = None,
    objects: bool = False,
) -> Coding:
    """Infer what the pixels of the masks mean.

    Args:
        cases: all cases, as one mask may contain only some of the classes.
        classes: names of files or folders, if each class has its own.
        names: names for the classes in the order of their values.
        colors: color of each class, if masks are color-coded. Default: as found.
        threshold: pixels of at least this value are foreground.
        ignore: value of pixels that were not annotated: nnU-Net's ignore label.
        objects: whether each file is an object of the same class.

    Raises:
        DataError: JPEG masks without a threshold, too many values, or masks that cannot be read.
        PlanError: names or colors that do not fit the masks.
    """
    files = [file for case in cases for file, _ in case.masks]
    lossy = [file for file in files if file.suffix.lower() in JPEG]
    if lossy and threshold is None:
        raise DataError(
            f"{len(lossy)} masks are JPEG, such as {lossy[0]}. JPEG compression blurs values, so classes cannot be "
            f"told apart near edges. For a single class, give --threshold 128. Otherwise, export the masks as PNG."
        )
    if threshold is not None or objects:
        if len(names) > 1 or classes:
            reason = f"the classes {format_names(list(classes))}" if classes else f"{len(names)} names"
            raise PlanError(f"A threshold, or one file for each object, makes one class, but there are {reason}.")
        kind = "files" if threshold is None else "values"
        return Coding(kind, _numbered(names or ["foreground"]), threshold=threshold)
    if classes:
        if names and sorted(names) != sorted(classes):
            raise PlanError(
                f"The files contain the classes {format_names(list(classes))}, but --classes names "
                f"{format_names(list(names))}."
            )
        return Coding("files", _numbered(list(names or classes)))
    values, found, sets = _values_and_colors(files)
    if found or colors:
        return _color_coding(found, names, colors)
    if len(names) < 2:
        _check_for_two_codings(values, sets, ignore)
    return _value_coding(values, names, ignore)


def _values_and_colors(files: Sequence[Path]) -> tuple[list[int], list[Color], set[frozenset[int]]]:
    """Collect the values of the masks, or their colors if some masks are in color.

    Returns:
        values in ascending order, colors from the most frequent one, and the sets of values of single files.
    """
    palettes = {_palette(file) for file in files} - {None}
    # an index means the same in all files only if their palettes are equal
    by_color = len(palettes) > 1
    values: set[int] = set()
    counts: Counter[Color] = Counter()
    sets: set[frozenset[int]] = set()
    for file in files:
        pixels = read_mask(file, color=by_color)
        if pixels.ndim == 3:
            unique, number = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
            counts.update({(int(r), int(g), int(b)): int(n) for (r, g, b), n in zip(unique, number, strict=True)})
        else:
            if not np.issubdtype(pixels.dtype, np.integer) and (pixels != np.round(pixels)).any():
                raise DataError(f"The mask {file} has fractional values. Round them to class numbers first.")
            own = np.unique(pixels).astype(int).tolist()
            values.update(own)
            sets.add(frozenset(own))
        if max(len(values), len(counts)) > MAX_CLASSES:
            kind = "colors" if counts else "values"
            raise DataError(
                f"The masks have more than {MAX_CLASSES} {kind} ({file} among them), so they are not class numbers. "
                f"Perhaps their edges are blurred, or images lie where masks should be. For one class give "
                f"--threshold 128. If they are numbers of objects, give --instances."
            )
    if counts:
        for value in values - {0}:
            counts[value, value, value] += 1
    return sorted(values), [color for color, _ in counts.most_common() if color != BLACK], sets


def _check_for_two_codings(values: Sequence[int], sets: set[frozenset[int]], ignore: int | None) -> None:
    """Raise an error if masks of one class seem to be 0 and 1 in some files, and 0 and 255 in others."""
    both = {1, 255}
    if {value for value in values if value not in (0, ignore)} == both and not any(both <= own for own in sets):
        raise DataError(
            "Some masks have the values 0 and 1, others 0 and 255, and none has both 1 and 255: one class may have "
            "been saved in two ways. If so, give --threshold 1. If they are two classes, name both with --classes."
        )


def _palette(file: Path) -> bytes | None:
    try:
        with allow_large_images(), Image.open(file, formats=FORMATS) as image:
            return bytes(image.getpalette() or []) if image.mode == "P" else None
    except Exception:
        return None


def _value_coding(values: Sequence[int], names: Sequence[str], ignore: int | None) -> Coding:
    foreground = [value for value in values if value not in (0, ignore)]
    if not foreground:
        raise DataError("All masks are empty (0 everywhere).")
    if foreground[0] < 0:
        raise DataError(f"The masks have the negative value {foreground[0]}.")
    indices = len(foreground) > 1 and foreground[-1] <= max(len(foreground), len(names))
    if indices:  # values that occur in no mask keep their number
        foreground = list(range(1, foreground[-1] + 1))
    default = ["foreground"] if len(foreground) == 1 else [f"class_{value}" for value in foreground]
    if names and len(names) != len(foreground):
        raise PlanError(
            f"--classes names {len(names)} classes ({format_names(list(names))}), but the masks have the values "
            f"{format_names(list(map(str, foreground)), 20)} besides 0. Give a name for each value, in this order."
        )
    labels = _numbered(names or default)
    label_of_value = {0: 0, **{value: index for index, value in enumerate(foreground, start=1)}}
    if ignore is not None:
        if ignore not in values:
            raise PlanError(
                f"--ignore {ignore}: no mask has this value; they have {format_names(list(map(str, values)), 20)}."
            )
        labels["ignore"] = label_of_value[ignore] = len(labels)
    return Coding("values", labels, label_of_value)


def _color_coding(found: Sequence[Color], names: Sequence[str], colors: Mapping[str, Color] | None) -> Coding:
    if colors:
        left = [color for color in found if color not in colors.values()]
        if left:
            shown = ", ".join("#{:02x}{:02x}{:02x}".format(*color) for color in left[:5])
            raise PlanError(f"The masks have {len(left)} colors that --colors does not name, such as {shown}.")
        chosen = {color: name for name, color in colors.items() if color != BLACK}
    else:
        if names and len(names) != len(found):
            shown = ", ".join("#{:02x}{:02x}{:02x}".format(*color) for color in found[:10])
            raise PlanError(
                f"--classes names {len(names)} classes, but the masks have {len(found)} colors besides black "
                f"({shown}). Give --colors NAME=COLOR for each."
            )
        ordered = list(found) if names else sorted(found)
        default = ["color_{:02x}{:02x}{:02x}".format(*color) for color in ordered]
        chosen = dict(zip(ordered, names or default, strict=True))
    labels = _numbered(list(chosen.values()))
    return Coding("colors", labels, label_of_color={color: labels[name] for color, name in chosen.items()})


def _numbered(names: Sequence[str]) -> dict[str, int]:
    for name in names:
        if name in ("background", "ignore") or not name:
            raise PlanError(f"A class cannot have the name {name!r}, which has another meaning in nnU-Net.")
    if len(set(names)) < len(names):
        raise PlanError(f"Two classes have the same name: {format_names(list(names))}.")
    return {"background": 0, **{name: index for index, name in enumerate(names, start=1)}}
