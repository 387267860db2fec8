"""Sources of the label map of a case: mask files, or polygons."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nnunet_hrmedseg.datasets.mask_pixels import JPEG, as_values, number_objects, read_mask
from nnunet_hrmedseg.datasets.masks import Coding, Color, find_coding
from nnunet_hrmedseg.datasets.matching import (
    Case,
    Matches,
    assign_annotations,
    case_names,
    list_images,
    match,
)
from nnunet_hrmedseg.datasets.pixels import composed, is_turned_unnoticed, orientation, turn
from nnunet_hrmedseg.datasets.polygons import Annotation, is_annotation_source, read_annotations
from nnunet_hrmedseg.errors import DataError, PlanError, format_names, format_shape
from nnunet_hrmedseg.io.instances import BORDER, CORE, border_labels
from nnunet_hrmedseg.io.raw_cases import check_training_names
from nnunet_hrmedseg.plans.overrides import CANVAS

__all__ = ["MaskSource", "find_source"]

# names of these two in labelme and COCO tools
BACKGROUND = ("background", "_background_", "__background__")
IGNORE = ("ignore", "_ignore_", "__ignore__")


class MaskSource(ABC):
    """Cases, their classes, and the label map of each case.

    Attributes:
        cases: names and files.
        labels: class -> value, background included.
        notes: on files that were skipped or look unusual.
    """

    cases: list[Case]
    labels: dict[str, int]
    notes: list[str]

    @property
    def classes(self) -> list[str]:
        """Names of the classes without background and ignore label."""
        return [name for name, value in self.labels.items() if value and name != "ignore"]

    @abstractmethod
    def describe(self) -> str:
        """Return how the masks were interpreted."""

    @abstractmethod
    def label_map(self, case: Case, shape: tuple[int, int]) -> np.ndarray:
        """Return the label map of a case, (H, W) uint8, for an image of this height and width.

        Raises:
            DataError: a mask that cannot be read or has another size.
        """


class MaskFiles(MaskSource):
    """Masks as image files."""

    def __init__(self, matches: Matches, coding: Coding):
        self.cases, self.coding, self.labels = matches.cases, coding, coding.labels
        unclear = [case for case in self.cases if is_turned_unnoticed(case.image)]
        turned = [case.image for case in unclear if any(orientation(file) == 1 for file, _ in case.masks)]
        self.notes = [*_notes(matches), *coding.notes, *_note_of_turned(turned)]

    def describe(self) -> str:
        return self.coding.describe()

    def label_map(self, case: Case, shape: tuple[int, int]) -> np.ndarray:
        color = self.coding.kind == "colors"
        masks = [(self.read(case, file, shape, color=color), name) for file, name in case.masks]
        try:
            return self.coding.label_map(masks)
        except DataError as error:
            raise DataError(f"{format_names([str(file) for file, _ in case.masks])}: {error}.") from error

    def read(self, case: Case, file: Path, shape: tuple[int, int], *, color: bool) -> np.ndarray:
        """Read a mask and check that it has the size of its image.

        Raises:
            DataError: the mask cannot be read or has another size.
        """
        pixels = read_mask(file, color=color)
        if pixels.shape[:2] != shape and pixels.shape[1::-1] == shape and orientation(file) == 1:
            # drawn on the stored image, which viewers rotate by its EXIF orientation
            pixels = turn(pixels, orientation(case.image))
        if pixels.shape[:2] != shape:
            own = format_shape(pixels.shape[:2])
            raise DataError(
                f"{file} has {own} pixels, but its image {case.image} has {format_shape(shape)} (height x width)."
            )
        return pixels


class InstanceFiles(MaskFiles):
    """Masks of objects: one file for each object, or files in which each object has its own value or color."""

    def __init__(self, matches: Matches, names: Sequence[str]):
        matches.note = ""
        super().__init__(matches, Coding("files", instance_labels(names)))
        self.objects = matches.objects or any(len(case.masks) > 1 for case in matches.cases)

    def describe(self) -> str:
        return "one file for each object" if self.objects else "one value or color for each object"

    def label_map(self, case: Case, shape: tuple[int, int]) -> np.ndarray:
        instances = np.zeros(shape, np.int32)
        for number, (file, _) in enumerate(case.masks, start=1):
            pixels = self.read(case, file, shape, color=False)
            if self.objects:
                instances[as_values(pixels) > 0] = number
            else:
                instances = number_objects(pixels)
        return border_labels(instances, border_thickness(instances.shape))


class Polygons(MaskSource):
    """Masks as outlines in a COCO file or labelme files. Later shapes cover earlier ones."""

    def __init__(self, images_folder: Path, place: Path, classes: Sequence[str], instances: bool = False):
        self.instances = instances
        annotations, found, notes = read_annotations(place)
        used = [name for name in found if name not in (*BACKGROUND, *IGNORE)]
        if classes and not instances and not set(used) <= set(classes):
            raise PlanError(
                f"{place} has the classes {format_names(used)}, but --classes names {format_names(list(classes))}."
            )
        names = list(classes or used)
        if not names:
            raise DataError(f"{place} has no shape with an area.")
        self.labels = {"background": 0, **{name: index for index, name in enumerate(names, start=1)}}
        if instances:
            self.labels = instance_labels(classes)
        elif set(found) & set(IGNORE):
            self.labels["ignore"] = len(self.labels)
        self.values = {
            **self.labels,
            **dict.fromkeys(BACKGROUND, 0),
            **dict.fromkeys(IGNORE, self.labels.get("ignore", 0)),
        }
        self.place = place
        images, _ = list_images(images_folder)
        self.annotations: dict[str, Annotation] = {}
        self.cases, missing = [], []
        assigned, unknown = assign_annotations(images, images_folder, annotations, place)
        named = case_names(images, images_folder)
        check_training_names(named.items())
        for name, file in named.items():
            if file not in assigned:
                missing.append(file)
                continue
            self.cases.append(Case(name, file, ()))
            self.annotations[name] = assigned[file]
        self.notes = list(notes)
        if missing:
            self.notes.append(f"images left out, because they have no annotation ({len(missing)}): {_names(missing)}")
        if unknown:
            self.notes.append(f"annotated images that are missing ({len(unknown)}): {format_names(unknown)}")
        self.notes += _note_of_turned([case.image for case in self.cases if is_turned_unnoticed(case.image)])
        if not self.cases:
            raise DataError(f"{place} annotates no image of {images_folder}, but {format_names(unknown)}.")

    def describe(self) -> str:
        return f"outlines {'of objects ' * self.instances}in {self.place}"

    def label_map(self, case: Case, shape: tuple[int, int]) -> np.ndarray:
        annotation = self.annotations[case.name]
        annotated = annotation.size or shape
        turned = annotated != shape and annotated[::-1] == shape and orientation(case.image) in (5, 6, 7, 8)
        if annotated != shape and not turned:
            raise DataError(
                f"{case.image} has {format_shape(shape)} pixels, but {self.place} annotates it at "
                f"{format_shape(annotated)} (height x width), so the outlines would lie in the wrong places. Use "
                f"the image that was annotated, or correct width and height in the annotation if only these are wrong."
            )
        result = np.zeros(annotated, np.int32 if self.instances else np.uint8)
        for number, shape_ in enumerate(annotation.shapes, start=1):
            is_object = self.instances and shape_.category not in (*BACKGROUND, *IGNORE)
            try:
                result[shape_.mask(*annotated)] = number if is_object else self.values.get(shape_.category, 0)
            except DataError as error:
                raise DataError(f"{self.place}, image {case.image.name}: {error}.") from error
        if self.instances:
            result = border_labels(result, border_thickness(result.shape))
        # annotated on the stored image, which viewers rotate by its EXIF orientation
        return turn(result, orientation(case.image)) if turned else result


def border_thickness(shape: Sequence[int]) -> int:
    """Return the thickness in pixels of a border that an image of this (H, W) keeps on a canvas of 1024 x 1024."""
    return max(1, *(-(-side // of_canvas) for side, of_canvas in zip(shape, CANVAS, strict=True)))


def instance_labels(names: Sequence[str]) -> dict[str, int]:
    """Return the labels of a dataset of objects: background, the core of an object, and its border.

    Raises:
        PlanError: more than one name, or one that nnU-Net or the border uses.
    """
    if len(names) > 1:
        raise PlanError(f"--instances: objects are of one class, but --classes names {format_names(list(names))}.")
    name = names[0] if names else "object"
    if name in ("background", "ignore", "border"):
        raise PlanError(f"--instances: objects cannot have the name {name!r}, which has another meaning.")
    return {"background": 0, name: CORE, "border": BORDER}


def find_source(
    images: Path,
    masks: Path,
    *,
    classes: Sequence[str] = (),
    colors: Mapping[str, Color] | None = None,
    threshold: int | None = None,
    ignore: int | None = None,
    instances: bool = False,
) -> MaskSource:
    """Match images and masks, and infer the coding of the masks. See `make_dataset` for the arguments.

    Raises:
        DataError: no match, volumes, or masks that cannot be interpreted.
        PlanError: options that do not fit the masks.
    """
    of_pixels = colors or threshold is not None or ignore is not None
    if instances and of_pixels:
        raise PlanError("--instances: --colors, --threshold and --ignore are for masks of classes. Leave them out.")
    classes = list(map(composed, classes))
    colors = {composed(name): color for name, color in (colors or {}).items()}
    if is_annotation_source(masks):
        if of_pixels:
            raise PlanError(
                f"{masks} has outlines, but --colors, --threshold and --ignore are for masks in image files. Leave "
                f"them out. Outlines of the name ignore mark pixels that were not annotated."
            )
        return Polygons(images, masks, classes, instances)
    matches = match(images, masks, () if instances else classes)
    if not matches.cases:
        raise DataError(
            f"No mask in {masks} matches an image in {images} by name. Images are "
            f"{_names(matches.images_without_mask)}, masks are {_names(matches.masks_without_image)}. Give each mask "
            f"the name of its image, optionally with a prefix or suffix after a separator."
        )
    if instances:
        lossy = [file for case in matches.cases for file, _ in case.masks if file.suffix.lower() in JPEG]
        if lossy:
            raise DataError(f"Masks are JPEG ({len(lossy)}, such as {lossy[0]}), which does not keep values. Use PNG.")
        return InstanceFiles(matches, classes)
    coding = find_coding(
        matches.cases,
        classes=matches.classes,
        names=classes,
        colors=colors,
        threshold=threshold,
        ignore=ignore,
        objects=matches.objects,
    )
    return MaskFiles(matches, coding)


def _notes(matches: Matches) -> list[str]:
    notes = [matches.note] if matches.note else []
    if matches.images_without_mask:
        notes.append(
            f"images without a mask ({len(matches.images_without_mask)}): {_names(matches.images_without_mask)}"
        )
    if matches.masks_without_image:
        notes.append(
            f"masks without an image ({len(matches.masks_without_image)}): {_names(matches.masks_without_image)}"
        )
    if matches.outside:
        notes.append(
            f"images left out, because they are outside the folders images and masks ({len(matches.outside)}): "
            f"{_names(matches.outside)}"
        )
    if matches.skipped:
        notes.append(f"files skipped, because they are not images ({len(matches.skipped)}): {_names(matches.skipped)}")
    return notes


def _note_of_turned(images: Sequence[Path]) -> list[str]:
    if not images:
        return []
    return [
        f"viewers turn images by their EXIF orientation without changing their size ({len(images)}): {_names(images)}. "
        f"Their masks are used as drawn on the turned image; check some of them in the dataset. If the masks were "
        f"drawn on the image as it is stored, remove the orientation from the images (exiftool -Orientation= FILE)"
    ]


def _names(files: Sequence[Path]) -> str:
    return format_names([file.name for file in files])
