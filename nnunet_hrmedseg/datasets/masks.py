"""Convert masks to label maps: 0 and 255, indices, palettes, colors, or one file for each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import ImageColor

from nnunet_hrmedseg.datasets.mask_pixels import JPEG, as_values, palette, read_mask
from nnunet_hrmedseg.datasets.matching import Case
from nnunet_hrmedseg.errors import DataError, PlanError, format_names

__all__ = ["Coding", "Color", "find_coding", "parse_colors"]

MAX_CLASSES = 100
Color = tuple[int, int, int]
BLACK: Color = (0, 0, 0)
NO_CLASSES = ("background", "ignore")


@dataclass(frozen=True)
class Coding:
    """The meaning of the masks' pixels.

    Attributes:
        kind: "values", "colors" or "files": by pixel value, by color, or the pixels of each file that are not 0 or at
            least the threshold.
        labels: class -> value in the dataset, background included.
        label_of_value: pixel value -> label.
        label_of_color: color -> label.
        threshold: lowest value of pixels that belong to the class of their file.
        ignore: value of pixels that were not annotated, in files of classes or objects, or with a threshold.
        notes: what to check in masks that are unusual.
    """

    kind: str
    labels: dict[str, int]
    label_of_value: dict[int, int] = field(default_factory=dict)
    label_of_color: dict[Color, int] = field(default_factory=dict)
    threshold: int | None = None
    ignore: int | None = None
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return one line for the summary."""
        if self.kind == "colors":
            names = {value: name for name, value in self.labels.items()}
            return ", ".join(f"{_hex(color)} {names[value]}" for color, value in self.label_of_color.items())
        if self.kind == "values":
            return ", ".join(f"{value} -> {label}" for value, label in self.label_of_value.items())
        text = "one file for each class" if len(self.classes) > 1 else "one file for each object"
        if self.threshold is not None:
            name = self.classes[0] if len(self.classes) == 1 else "the class of their file"
            text = f"pixels of at least {self.threshold} are {name}"
        return text if self.ignore is None else f"{text}, {self.ignore} is ignore"

    @property
    def classes(self) -> list[str]:
        """Names of the classes without background and ignore label."""
        return [name for name, value in self.labels.items() if value and name != "ignore"]

    def label_map(self, masks: Sequence[tuple[np.ndarray, str | None]]) -> np.ndarray:
        """Return the label map (H, W) uint8 of one case; where masks overlap, the later class wins.

        Args:
            masks: pixels (H, W) or (H, W, 3) of each file, and its class if files are classes.

        Raises:
            DataError: a value without a class.
        """
        result = np.zeros(masks[0][0].shape[:2], np.uint8)
        for pixels, name in sorted(masks, key=lambda mask: self.labels.get(mask[1] or "", 1)):
            if self.kind == "files":
                values = as_values(pixels)
                inside = values > 0 if self.threshold is None else values >= self.threshold
                result[inside] = self.labels[name] if name else 1
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
        if self.ignore is not None:
            for pixels, _ in masks:
                result[as_values(pixels) == self.ignore] = self.labels["ignore"]
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
        if name in colors:
            raise PlanError(f"--colors gives {name!r} two colors. Give each class one color.")
        colors[name] = rgb[0], rgb[1], rgb[2]
    return colors


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
            f"Masks are JPEG ({len(lossy)}, such as {lossy[0]}). JPEG compression blurs values, so classes cannot be "
            f"told apart near edges. For a single class, or one file for each class, give --threshold 128. Otherwise, "
            f"export the masks as PNG."
        )
    if lossy and ignore is not None:
        raise PlanError(
            f"--ignore {ignore}: masks are JPEG ({len(lossy)}), which does not keep single values. Use PNG."
        )
    if classes or objects or threshold is not None:
        if colors:
            raise PlanError(
                "--colors is for masks in which each color is a class. It does not fit a threshold, or images with "
                "several masks. Leave it out."
            )
        return _file_coding(classes, names, threshold, ignore)
    values, found, sets = _values_and_colors(files, by_color=bool(colors))
    if found:
        if ignore is not None:
            raise PlanError(
                f"--ignore {ignore} is a pixel value, but the masks are in color. Give the color, such as --colors "
                f"ignore=#ffffff."
            )
        return _color_coding(found, names, colors or {})
    if len(names) < 2:
        _check_for_two_codings(values, sets, ignore)
    return _value_coding(values, names, ignore)


def _values_and_colors(files: Sequence[Path], *, by_color: bool) -> tuple[list[int], list[Color], set[frozenset[int]]]:
    """Collect the values of the masks, or their colors if some masks are in color.

    Args:
        files: to read.
        by_color: collect the colors in any case.

    Returns:
        values in ascending order, colors from the most frequent one, and the sets of values of single files.
    """
    palettes = {palette(file) for file in files} - {None}
    # an index means the same in all files only if their palettes are equal
    by_color = by_color or len(palettes) > 1
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
    if counts and values:  # some files in color, others gray or with a palette
        return _values_and_colors(files, by_color=True)
    return sorted(values), [color for color, _ in counts.most_common()], sets


def _check_for_two_codings(values: Sequence[int], sets: set[frozenset[int]], ignore: int | None) -> None:
    """Raise an error if masks of one class seem to be 0 and 1 in some files, and 0 and 255 in others."""
    both = {1, 255}
    if {value for value in values if value not in (0, ignore)} == both and not any(both <= own for own in sets):
        raise DataError(
            "Some masks have the values 0 and 1, others 0 and 255, and none has both 1 and 255: one class may have "
            "been saved in two ways. If so, give --threshold 1. If they are two classes, name both with --classes."
        )


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


def _file_coding(classes: Sequence[str], names: Sequence[str], threshold: int | None, ignore: int | None) -> Coding:
    if classes and names and sorted(names) != sorted(classes):
        raise PlanError(
            f"The files contain the classes {format_names(list(classes))}, but --classes names "
            f"{format_names(list(names))}."
        )
    if not classes and len(names) > 1:
        raise PlanError(f"A threshold, or one file for each object, makes one class, but there are {len(names)} names.")
    labels = _numbered(list(names or classes or ["foreground"]))
    if ignore is not None:
        labels["ignore"] = len(labels)
    return Coding("files", labels, threshold=threshold, ignore=ignore)


def _color_coding(found: Sequence[Color], names: Sequence[str], colors: Mapping[str, Color]) -> Coding:
    """Return the coding of colors, numbered in ascending order, or in the order of --colors or --classes.

    Args:
        found: colors from the most frequent one.
        names: of the classes.
        colors: class -> color; background and ignore may be among them.
    """
    special = {"background": BLACK, **{name: color for name, color in colors.items() if name in NO_CLASSES}}
    given = {name: color for name, color in colors.items() if name not in NO_CLASSES}
    left = sorted(set(found) - {*special.values(), *given.values()})
    notes: tuple[str, ...] = ()
    _numbered(names)  # raises an error on equal names
    if given:
        if left:
            raise PlanError(
                f"The masks have {len(left)} colors that --colors does not name, such as {_hex(*left[:5])}. Name them "
                f"as well; colors that are no class have the names background and ignore."
            )
        if names and sorted(names) != sorted(given):
            raise PlanError(
                f"--colors names the classes {format_names(list(given))}, but --classes names "
                f"{format_names(list(names))}. Leave out --classes."
            )
        given = {name: given[name] for name in names or given}
    else:
        if not left:
            raise DataError(f"All masks are empty ({_hex(*found)} everywhere).")
        if names and len(names) != len(left):
            raise PlanError(
                f"--classes names {len(names)} classes, but the masks have {len(left)} colors besides the background "
                f"({_hex(*left[:10])}). Give a name for each color, in this order, or --colors NAME=COLOR for each."
            )
        given = dict(zip(names or [f"color_{_hex(color)[1:]}" for color in left], left, strict=True))
        if special["background"] not in found:
            notes = (
                f"no mask has pixels of the background, {_hex(special['background'])}. If {_hex(found[0])}, the most "
                f"frequent color, is the background, give --colors background={_hex(found[0])}",
            )
    color_of = {**special, **given}
    for color, count in Counter(color_of.values()).items():
        if count > 1:
            both = format_names([name for name, own in color_of.items() if own == color])
            raise PlanError(
                f"{both} have the same color, {_hex(color)}. Give each its own, such as background=#ffffff."
            )
    labels = _numbered(list(given))
    if "ignore" in special:
        labels["ignore"] = len(labels)
    label_of_color = {color: labels[name] for name, color in color_of.items() if labels[name]}
    return Coding("colors", labels, label_of_color=label_of_color, notes=notes)


def _hex(*colors: Color) -> str:
    return ", ".join("#{:02x}{:02x}{:02x}".format(*color) for color in colors)


def _numbered(names: Sequence[str]) -> dict[str, int]:
    for name in names:
        if name in NO_CLASSES or not name:
            raise PlanError(f"A class cannot have the name {name!r}, which has another meaning in nnU-Net.")
    if len(set(names)) < len(names):
        raise PlanError(f"Two classes have the same name: {format_names(list(names))}.")
    return {"background": 0, **{name: index for index, name in enumerate(names, start=1)}}
