"""Where the label map of a case comes from: mask files, or polygons."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nnunet_hrmedseg.datasets.masks import Coding, Color, find_coding, read_mask
from nnunet_hrmedseg.datasets.matching import Case, Matches, assign_annotations, case_names, list_images, match
from nnunet_hrmedseg.datasets.pixels import orientation, turn
from nnunet_hrmedseg.datasets.polygons import Annotation, is_annotation_source, read_annotations
from nnunet_hrmedseg.errors import HRMedSegError, format_names, format_shape

__all__ = ["MaskSource", "find_source"]

# names that labelme and COCO tools give to these two
BACKGROUND = ("background", "_background_", "__background__")
IGNORE = ("ignore", "_ignore_", "__ignore__")


class MaskSource(ABC):
    """Cases, their classes, and the label map of each case.

    Attributes:
        notes: what was skipped or looks unusual.
    """

    cases: list[Case]
    labels: dict[str, int]
    notes: list[str]

    @property
    def classes(self) -> list[str]:
        return [name for name, value in self.labels.items() if value and name != "ignore"]

    @abstractmethod
    def describe(self) -> str:
        """Return what the masks were taken for."""

    @abstractmethod
    def label_map(self, case: Case, shape: tuple[int, int]) -> np.ndarray:
        """Return the label map of a case, (H, W) uint8, for an image of this height and width.

        Raises:
            HRMedSegError: a mask that cannot be read or has another size.
        """


class MaskFiles(MaskSource):
    """Masks as image files."""

    def __init__(self, matches: Matches, coding: Coding):
        self.cases, self.coding, self.labels = matches.cases, coding, coding.labels
        self.notes = _notes(matches)

    def describe(self) -> str:
        return self.coding.describe()

    def label_map(self, case: Case, shape: tuple[int, int]) -> np.ndarray:
        masks = []
        for file, name in case.masks:
            pixels = read_mask(file, color=self.coding.kind == "colors")
            if pixels.shape[:2] != shape and pixels.shape[1::-1] == shape and orientation(file) == 1:
                # drawn on the image as it is stored, which is shown turned by its EXIF orientation
                pixels = turn(pixels, orientation(case.image))
            if pixels.shape[:2] != shape:
                own = format_shape(pixels.shape[:2])
                raise HRMedSegError(
                    f"{file} has {own} pixels, its image {case.image} {format_shape(shape)} (height x width)."
                )
            masks.append((pixels, name))
        try:
            return self.coding.label_map(masks)
        except HRMedSegError as error:
            raise HRMedSegError(f"{format_names([str(file) for file, _ in case.masks])}: {error}.") from error


class Polygons(MaskSource):
    """Masks as outlines in a COCO file or labelme's files. Later shapes lie over earlier ones."""

    def __init__(self, images_folder: Path, place: Path, classes: Sequence[str]):
        annotations, found, notes = read_annotations(place)
        named = [name for name in found if name not in (*BACKGROUND, *IGNORE)]
        if classes and not set(named) <= set(classes):
            raise HRMedSegError(
                f"{place} has the classes {format_names(named)}; --classes names {format_names(list(classes))}."
            )
        names = list(classes or named)
        if not names:
            raise HRMedSegError(f"{place} holds no shape with an area.")
        self.labels = {"background": 0, **{name: index for index, name in enumerate(names, start=1)}}
        if set(found) & set(IGNORE):
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
        for name, file in case_names(images, images_folder).items():
            if file not in assigned:
                missing.append(file)
                continue
            self.cases.append(Case(name, file, ()))
            self.annotations[name] = assigned[file]
        self.notes = list(notes)
        if missing:
            self.notes.append(f"{len(missing)} images without annotation were left out: {_names(missing)}")
        if unknown:
            self.notes.append(f"{len(unknown)} annotated images are missing: {format_names(unknown)}")
        if not self.cases:
            raise HRMedSegError(f"No image of {images_folder} is annotated in {place}: {format_names(unknown)} are.")

    def describe(self) -> str:
        return f"outlines in {self.place}"

    def label_map(self, case: Case, shape: tuple[int, int]) -> np.ndarray:
        annotation = self.annotations[case.name]
        annotated = annotation.size or shape
        turned = annotated != shape and annotated[::-1] == shape and orientation(case.image) in (5, 6, 7, 8)
        if annotated != shape and not turned:
            raise HRMedSegError(
                f"{case.image} has {format_shape(shape)} pixels; {self.place} annotates it at {format_shape(annotated)} (height x "
                f"width), so the outlines would lie in the wrong places. Take the image that was annotated, or correct "
                f"the width and height in the annotation if they alone are wrong."
            )
        result = np.zeros(annotated, np.uint8)
        for outline in annotation.shapes:
            try:
                result[outline.mask(*annotated)] = self.values[outline.category]
            except HRMedSegError as error:
                raise HRMedSegError(f"{self.place}, image {case.image.name}: {error}.") from error
        # annotated as the image is stored, which is shown turned by its EXIF orientation
        return turn(result, orientation(case.image)) if turned else result


def find_source(
    images: Path,
    masks: Path,
    *,
    classes: Sequence[str] = (),
    colors: Mapping[str, Color] | None = None,
    threshold: int | None = None,
    ignore: int | None = None,
) -> MaskSource:
    """Match images and masks, and find out how the masks are coded. See `make_dataset` for the arguments.

    Raises:
        HRMedSegError: nothing matches, volumes, or masks that cannot be understood.
    """
    if is_annotation_source(masks):
        return Polygons(images, masks, classes)
    matches = match(images, masks)
    if not matches.cases:
        raise HRMedSegError(
            f"No mask of {masks} matches an image of {images} by name: images are "
            f"{_names(matches.images_without_mask)}, masks {_names(matches.masks_without_image)}. Name a mask like its "
            f"image, with a prefix or suffix behind a separator if you like."
        )
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
    notes = []
    if matches.images_without_mask:
        notes.append(f"{len(matches.images_without_mask)} images have no mask: {_names(matches.images_without_mask)}")
    if matches.masks_without_image:
        notes.append(f"{len(matches.masks_without_image)} masks have no image: {_names(matches.masks_without_image)}")
    if matches.skipped:
        notes.append(f"{len(matches.skipped)} files are not images and were skipped: {_names(matches.skipped)}")
    return notes


def _names(files: Sequence[Path]) -> str:
    return format_names([file.name for file in files])
