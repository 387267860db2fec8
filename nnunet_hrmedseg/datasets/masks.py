"""Turn mask files of any coding into label maps: 0 and 255, indices, palettes, colors, a file for each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageOps

from nnunet_hrmedseg.datasets.matching import Case
from nnunet_hrmedseg.datasets.pixels import orientation, read_image
from nnunet_hrmedseg.errors import HRMedSegError, format_names
from nnunet_hrmedseg.io.image_formats import FORMATS, allow_large_images

__all__ = ["Coding", "find_coding", "parse_colors", "read_mask"]

MOST_CLASSES = 100
JPEG = (".jpg", ".jpeg")
Color = tuple[int, int, int]
BLACK: Color = (0, 0, 0)


@dataclass(frozen=True)
class Coding:
    """What the pixels of the masks mean.

    Attributes:
        kind: "values", "colors" or "files": by pixel value, by color, or any pixel that is not 0 in a file a class.
        labels: class -> its value in the dataset, background included.
        of_value: pixel value, or color, -> label.
        threshold: pixels of at least this value are class 1.
    """

    kind: str
    labels: dict[str, int]
    of_value: dict[int, int] = field(default_factory=dict)
    of_color: dict[Color, int] = field(default_factory=dict)
    threshold: int | None = None

    def describe(self) -> str:
        """Return a line for the report."""
        if self.threshold is not None:
            return f"pixels of {self.threshold} and more are {self.classes[0]}"
        if self.kind == "colors":
            names = {value: name for name, value in self.labels.items()}
            return ", ".join(f"#{r:02x}{g:02x}{b:02x} {names[v]}" for (r, g, b), v in self.of_color.items())
        if self.kind == "files":
            return "a file for each class" if len(self.classes) > 1 else "a file for each object"
        return ", ".join(f"{value} -> {label}" for value, label in self.of_value.items())

    @property
    def classes(self) -> list[str]:
        return [name for name, value in self.labels.items() if value]

    def label_map(self, masks: Sequence[tuple[np.ndarray, str | None]]) -> np.ndarray:
        """Return the label map (H, W) uint8 of one case; where masks overlap, the later class wins.

        Args:
            masks: pixels (H, W) or (H, W, 3) of each file, and its class where files are classes.

        Raises:
            HRMedSegError: a value or color that stands for nothing.
        """
        result = np.zeros(masks[0][0].shape[:2], np.uint8)
        for pixels, name in masks:
            if self.threshold is not None:
                result[_as_values(pixels) >= self.threshold] = 1
            elif self.kind == "files":
                result[_as_values(pixels) > 0] = self.labels[name] if name else 1
            elif self.kind == "colors":
                for color, label in self.of_color.items():
                    result[(pixels == np.array(color, pixels.dtype)).all(-1)] = label
            else:
                values = _as_values(pixels)
                unknown = sorted(set(np.unique(values).tolist()) - set(self.of_value))
                if unknown:
                    raise HRMedSegError(
                        f"it has the values {format_names(list(map(str, unknown)))}, which no class stands for"
                    )
                for value, label in self.of_value.items():
                    if label:
                        result[values == value] = label
        return result


def parse_colors(texts: Iterable[str]) -> dict[str, Color]:
    """Parse NAME=COLOR, where a color is #ff0000, a name, or r,g,b.

    Raises:
        HRMedSegError: it is not of this form.
    """
    colors: dict[str, Color] = {}
    for text in texts:
        name, _, color = text.rpartition("=")
        try:
            rgb = tuple(map(int, color.split(","))) if "," in color else ImageColor.getrgb(color)[:3]
            if not name or len(rgb) != 3 or not all(0 <= value <= 255 for value in rgb):
                raise ValueError
        except ValueError:
            raise HRMedSegError(f"{text!r} is not NAME=COLOR, such as disc=#ff0000 or disc=255,0,0.") from None
        colors[name] = rgb[0], rgb[1], rgb[2]
    return colors


def read_mask(file: Path, *, color: bool = False) -> np.ndarray:
    """Read a mask: (H, W) values, of a palette file the indices; or (H, W, 3) where it is in color.

    Args:
        file: to read.
        color: return colors in any case.

    Raises:
        HRMedSegError: it cannot be read.
    """
    pixels = None if color else _palette_indices(file)
    if pixels is None:
        pixels = read_image(file)
    if color:
        return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)
    return _as_values(pixels) if pixels.ndim == 3 and (pixels == pixels[..., :1]).all() else pixels


def _as_values(pixels: np.ndarray) -> np.ndarray:
    """(H, W): of a color image the largest channel, so that any color is not 0."""
    return pixels.max(-1) if pixels.ndim == 3 else pixels


def _palette_indices(file: Path) -> np.ndarray | None:
    try:
        with allow_large_images(), Image.open(file, formats=FORMATS) as image:
            if image.mode == "P":
                return np.asarray(ImageOps.exif_transpose(image) if orientation(file) != 1 else image)
    except Exception:  # another format, or damaged: the reader of images says so
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
    """Find out what the masks of these cases mean.

    Args:
        cases: all of them: what one mask shows may be half of the classes.
        classes: names of files or folders where each class has its own.
        names: for the classes, in the order of their values.
        colors: of each class, where masks are color-coded; found if None.
        threshold: pixels of at least this value are foreground.
        ignore: pixel value of pixels that nobody annotated: nnU-Net's ignore label.
        objects: each file is an object of the one class.

    Raises:
        HRMedSegError: JPEG masks without a threshold, too many values, or names that do not fit what was found.
    """
    files = [file for case in cases for file, _ in case.masks]
    lossy = [file for file in files if file.suffix.lower() in JPEG]
    if lossy and threshold is None:
        raise HRMedSegError(
            f"{len(lossy)} masks are JPEG, such as {lossy[0]}: its compression blurs values, so classes cannot be told "
            f"apart near edges. For one class give --threshold 128; else save the masks as PNG from their source."
        )
    if threshold is not None or objects:
        if len(names) > 1 or classes:
            reason = f"the classes {format_names(list(classes))}" if classes else f"{len(names)} names"
            raise HRMedSegError(f"A threshold, or a file for each object, makes one class, and there are {reason}.")
        kind = "files" if threshold is None else "values"
        return Coding(kind, _numbered(names or ["foreground"]), threshold=threshold)
    if classes:
        if names and sorted(names) != sorted(classes):
            raise HRMedSegError(
                f"The files show the classes {format_names(list(classes))}; --classes names {format_names(list(names))}."
            )
        return Coding("files", _numbered(list(names or classes)))
    values, found, sets = _values_and_colors(files)
    if found or colors:
        return _color_coding(found, names, colors)
    if len(names) < 2:
        _check_for_two_codings(values, sets, ignore)
    return _value_coding(values, names, ignore)


def _values_and_colors(files: Sequence[Path]) -> tuple[list[int], list[Color], set[frozenset[int]]]:
    """All values of the masks in order, or all their colors, the most frequent first, where some are in color.

    Returns:
        values, colors, and the values that stand together in one file.
    """
    palettes = {_palette(file) for file in files} - {None}
    # indices mean the same in all files only if their palettes do
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
                raise HRMedSegError(f"The mask {file} holds fractions. Round its values to class numbers first.")
            own = np.unique(pixels).astype(int).tolist()
            values.update(own)
            sets.add(frozenset(own))
        if max(len(values), len(counts)) > MOST_CLASSES:
            kind = "colors" if counts else "values"
            raise HRMedSegError(
                f"The masks have more than {MOST_CLASSES} {kind} ({file} among them), so they are not class numbers. "
                f"Perhaps their edges are blurred, or images lie where masks should be. For one class give "
                f"--threshold 128. Numbers of objects in one file cannot be read yet."
            )
    if counts:
        for value in values - {0}:
            counts[value, value, value] += 1
    return sorted(values), [color for color, _ in counts.most_common() if color != BLACK], sets


def _check_for_two_codings(values: Sequence[int], sets: set[frozenset[int]], ignore: int | None) -> None:
    """Refuse masks of one class that are 0 and 1 in some files and 0 and 255 in others."""
    both = {1, 255}
    if {value for value in values if value not in (0, ignore)} == both and not any(both <= own for own in sets):
        raise HRMedSegError(
            "Some masks have the values 0 and 1, others 0 and 255, and none has both 1 and 255, as if one class was "
            "saved in two ways. If so, give --threshold 1; if they are two classes, name both with --classes."
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
        raise HRMedSegError("All masks are empty (0 everywhere): there is nothing to learn.")
    if foreground[0] < 0:
        raise HRMedSegError(f"The masks have the negative value {foreground[0]}.")
    indices = len(foreground) > 1 and foreground[-1] <= max(len(foreground), len(names))
    if indices:  # values that no mask of these happens to show keep their number
        foreground = list(range(1, foreground[-1] + 1))
    default = ["foreground"] if len(foreground) == 1 else [f"class_{value}" for value in foreground]
    if names and len(names) != len(foreground):
        raise HRMedSegError(
            f"--classes names {len(names)} classes ({format_names(list(names))}), and the masks have the values "
            f"{format_names(list(map(str, foreground)), 20)} besides 0. Give a name for each value, in this order."
        )
    labels = _numbered(names or default)
    of_value = {0: 0, **{value: index for index, value in enumerate(foreground, start=1)}}
    if ignore is not None:
        if ignore not in values:
            raise HRMedSegError(
                f"--ignore {ignore}: no mask has this value; they have {format_names(list(map(str, values)), 20)}."
            )
        labels["ignore"] = of_value[ignore] = len(labels)
    return Coding("values", labels, of_value)


def _color_coding(found: Sequence[Color], names: Sequence[str], colors: Mapping[str, Color] | None) -> Coding:
    if colors:
        left = [color for color in found if color not in colors.values()]
        if left:
            shown = ", ".join("#{:02x}{:02x}{:02x}".format(*color) for color in left[:5])
            raise HRMedSegError(f"The masks have {len(left)} colors that --colors does not name, such as {shown}.")
        chosen = {color: name for name, color in colors.items() if color != BLACK}
    else:
        if names and len(names) != len(found):
            shown = ", ".join("#{:02x}{:02x}{:02x}".format(*color) for color in found[:10])
            raise HRMedSegError(
                f"--classes names {len(names)} classes, and the masks have {len(found)} colors besides black "
                f"({shown}). Give --colors NAME=COLOR for each."
            )
        ordered = list(found) if names else sorted(found)
        default = ["color_{:02x}{:02x}{:02x}".format(*color) for color in ordered]
        chosen = dict(zip(ordered, names or default, strict=True))
    labels = _numbered(list(chosen.values()))
    return Coding("colors", labels, of_color={color: labels[name] for color, name in chosen.items()})


def _numbered(names: Sequence[str]) -> dict[str, int]:
    for name in names:
        if name in ("background", "ignore") or not name:
            raise HRMedSegError(f"A class cannot be called {name!r}: nnU-Net gives that name another meaning.")
    if len(set(names)) < len(names):
        raise HRMedSegError(f"Two classes have the same name: {format_names(list(names))}.")
    return {"background": 0, **{name: index for index, name in enumerate(names, start=1)}}
