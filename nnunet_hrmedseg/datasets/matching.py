"""Match masks to images by name, with prefixes, suffixes, and folders of classes or objects."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from nnunet_hrmedseg.datasets.pixels import is_image_file, stem
from nnunet_hrmedseg.datasets.polygons import Annotation
from nnunet_hrmedseg.errors import DataError, format_names

__all__ = ["Case", "Matches", "assign_annotations", "case_names", "list_images", "match"]

CHANNEL = re.compile(r"_0000$")
RENAME = "give the images different names, and the annotations the same names or folders."
BOUNDARY = re.compile(r"[^0-9A-Za-z]")


@dataclass(frozen=True)
class Case:
    """An image and its mask files.

    Attributes:
        name: of the case in the dataset.
        image: its file.
        masks: files, each with the class in its name; None if all masks are of one kind.
    """

    name: str
    image: Path
    masks: tuple[tuple[Path, str | None], ...]


@dataclass
class Matches:
    """Cases, and the files that match nothing.

    Attributes:
        cases: images with their masks.
        images_without_mask: images that no mask matches.
        masks_without_image: masks that match no image.
        skipped: files that are not images.
        classes: names of the classes, if each class has its own files.
        objects: whether each file is an object of the same class.
    """

    cases: list[Case] = field(default_factory=list)
    images_without_mask: list[Path] = field(default_factory=list)
    masks_without_image: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    objects: bool = False


def list_images(folder: Path) -> tuple[list[Path], list[Path]]:
    """List the image files below a folder, sorted, and the other files, which are skipped.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.")
    files = sorted(_files_below(folder))
    images = [file for file in files if is_image_file(file) and not file.name.startswith(".")]
    chosen = set(images)
    return images, [file for file in files if file not in chosen]


def _files_below(folder: Path) -> Iterator[Path]:
    """List all files. Links to folders are followed, but each folder is listed once."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(place, name) for name in names)


def match(images_folder: Path, masks_folder: Path) -> Matches:
    """Match masks to images.

    A mask belongs to an image if their names are equal, if its name has an additional prefix or suffix after a
    separator (`case1_mask`, `mask-case1`), or if names are equal without the suffixes that all images and all masks
    share (`21_training` and `21_manual1`). Several masks of an image are classes if their affixes or folders are the
    same words for several images. Otherwise they are objects of one class. Folders of cases with subfolders `images`
    and `masks`, as in the 2018 Data Science Bowl, are supported too.

    Raises:
        DataError: no images, no masks, or two images with the same name.
    """
    images, skipped = list_images(images_folder)
    nested = [file for file in images if len(file.relative_to(images_folder).parts) == 3]
    per_case = [file for file in nested if file.parent.name == "images"]
    if per_case:
        return _match_case_folders(images_folder, masks_folder, per_case, skipped)
    masks, skipped_masks = list_images(masks_folder)
    if masks_folder != images_folder and masks_folder.is_relative_to(images_folder):
        images = [file for file in images if not file.is_relative_to(masks_folder)]
    if not images or not masks:
        folder = masks_folder if images else images_folder
        raise DataError(f"{folder} has no image files. Supported formats: PNG, JPEG, TIFF, BMP, DICOM and NIfTI.")
    names = case_names(images, images_folder)
    result = Matches(skipped=sorted({*skipped, *skipped_masks}))
    found = _assign(names, masks, masks_folder)
    by_case: dict[str, list[tuple[Path, str]]] = defaultdict(list)
    for mask, (name, affix) in found.items():
        by_case[name].append((mask, affix))
    _describe(result, by_case)
    for name, image in names.items():
        own = sorted(by_case.get(name, []))
        if own:
            classes = [affix if result.classes else None for _, affix in own]
            result.cases.append(Case(name, image, tuple(zip((mask for mask, _ in own), classes, strict=True))))
        else:
            result.images_without_mask.append(image)
    result.masks_without_image = [mask for mask in masks if mask not in found]
    return result


def _match_case_folders(
    images_folder: Path, masks_folder: Path, images: Sequence[Path], skipped: list[Path]
) -> Matches:
    result = Matches(skipped=skipped, objects=True)
    counts = Counter(image.parent.parent.name for image in images)
    for image in images:
        folder = image.parent.parent.name
        name = folder if counts[folder] == 1 else f"{folder}_{stem(image)}"
        place = masks_folder / folder / "masks"
        masks = [file for file in (sorted(place.iterdir()) if place.is_dir() else []) if is_image_file(file)]
        if masks:
            result.cases.append(Case(name, image, tuple((mask, None) for mask in masks)))
        else:
            result.images_without_mask.append(image)
    return result


def case_names(images: Sequence[Path], folder: Path) -> dict[str, Path]:
    """Return name -> image. A name is the path in the folder with _ for /, without suffix and channel number _0000.

    Raises:
        DataError: a name that nnU-Net cannot use, or several images with the same name.
    """
    stems = {file: _joined(file, folder) for file in images}
    if all(CHANNEL.search(name) for name in stems.values()):
        stems = {file: CHANNEL.sub("", name) for file, name in stems.items()}
    labels = sorted(file.name for file, name in stems.items() if name.endswith("_seg"))
    if labels:
        raise DataError(
            f"Names of images must not end in _seg: {format_names(labels)}. nnU-Net would treat them as labels and not "
            f"train with them. Rename these images and their masks."
        )
    twice = sorted(name for name, count in Counter(stems.values()).items() if count > 1)
    if twice:
        raise DataError(f"Several images have the same name without suffix: {format_names(twice)}. Rename all but one.")
    return {name: file for file, name in stems.items()}


def assign_annotations(
    images: Sequence[Path], folder: Path, annotations: Sequence[Annotation], place: Path
) -> tuple[dict[Path, Annotation], list[str]]:
    """Find the annotation of each image: with the same name and, if several have it, in folders of the same names.

    Returns:
        image -> annotation, and the paths of annotations without an image.

    Raises:
        DataError: several annotations match one image, or several images match one annotation.
    """
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        by_stem[stem(image)].append(image)
    fitting: dict[Path, list[tuple[int, Annotation]]] = defaultdict(list)
    unknown = []
    for annotation in annotations:
        path = next((path for path in annotation.paths if _same_name(path, by_stem)), None)
        if path is None:
            unknown.append(annotation.paths[-1])
            continue
        scores = {image: _shared_folders(path, image.relative_to(folder)) for image in _same_name(path, by_stem)}
        best = [image for image, score in scores.items() if score == max(scores.values())]
        if len(best) > 1:
            raise DataError(f"{path} in {place} may be any of {format_names(list(map(str, best)))}: {RENAME}")
        fitting[best[0]].append((scores[best[0]], annotation))
    result = {}
    for image, own in fitting.items():
        most = max(score for score, _ in own)
        best_own = [annotation for score, annotation in own if score == most]
        if len(best_own) > 1:
            raise DataError(f"{place} annotates {len(best_own)} images that may be {image}: {RENAME}")
        result[image] = best_own[0]
        unknown += [annotation.paths[-1] for score, annotation in own if score < most]
    return result, sorted(unknown)


def _same_name(path: str, by_stem: Mapping[str, Sequence[Path]]) -> list[Path]:
    """Return images of this name, or of this name without suffix, as conversions change suffixes."""
    name = Path(PurePosixPath(path).name)
    same = by_stem.get(stem(name), ())
    if not is_image_file(name):  # the point of 1.2 may not start a suffix
        same = by_stem.get(name.name, same)
    return [image for image in same if image.name == name.name] or list(same)


def _shared_folders(path: str, image: Path) -> int:
    """Return how many parent folders of both have the same names."""
    pairs = zip(reversed(PurePosixPath(path).parts[:-1]), reversed(image.parts[:-1]), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _joined(file: Path, folder: Path) -> str:
    return unicodedata.normalize("NFC", "_".join((*file.relative_to(folder).parts[:-1], stem(file))))


def _assign(names: dict[str, Path], masks: Sequence[Path], folder: Path) -> dict[Path, tuple[str, str]]:
    """Return mask -> name of its case, and the rest of its own name: an affix or a folder."""
    found: dict[Path, tuple[str, str]] = {}
    stems = {stem(image): name for name, image in names.items()}
    if len(stems) < len(names):  # files of the same name in several folders
        stems = {}
    keys = {**stems, **{name: name for name in names}}
    for mask in masks:
        parents, own = mask.relative_to(folder).parts[:-1], stem(mask)
        whole = _joined(mask, folder)
        if whole in names:
            found[mask] = whole, ""
        elif own in stems:
            found[mask] = stems[own], "_".join(parents)
        elif parents and parents[-1] in names:  # a folder for each case
            found[mask] = parents[-1], own
        elif inside := _longest_inside(own, list(keys)):
            found[mask] = keys[inside[0]], inside[1]
    return found or _without_shared_suffixes(names, masks)


def _longest_inside(mask: str, names: Sequence[str]) -> tuple[str, str] | None:
    """Return the longest name in a mask's name that is surrounded by separators, and the rest of the mask's name."""
    best = None
    for name in names:
        place = mask.find(name)
        if place < 0 or (best and len(best[0]) >= len(name)):
            continue
        before, after = mask[:place], mask[place + len(name) :]
        if (not before or BOUNDARY.match(before[-1])) and (not after or BOUNDARY.match(after[0])):
            best = name, "_".join(part for part in (_trim(before), _trim(after)) if part)
    return best


def _without_shared_suffixes(names: dict[str, Path], masks: Sequence[Path]) -> dict[Path, tuple[str, str]]:
    image_suffix, mask_suffix = (_shared_suffix(list(group)) for group in (names, [stem(mask) for mask in masks]))
    bare = {name.removesuffix(image_suffix): name for name in names}
    found = {}
    for mask in masks:
        name = bare.get(stem(mask).removesuffix(mask_suffix))
        if name is not None:
            found[mask] = name, _trim(mask_suffix)
    return found


def _shared_suffix(texts: Sequence[str]) -> str:
    """Return the longest common suffix that starts at a separator."""
    shared = os.path.commonprefix([text[::-1] for text in texts])[::-1]
    separator = BOUNDARY.search(shared)
    return shared[separator.start() :] if separator else ""


def _trim(text: str) -> str:
    return re.sub(r"^[^0-9A-Za-z]+|[^0-9A-Za-z]+$", "", text)


def _describe(result: Matches, by_case: dict[str, list[tuple[Path, str]]]) -> None:
    """Decide whether several masks of a case are classes or objects."""
    if all(len(own) == 1 for own in by_case.values()):
        return
    affixes = Counter(affix for own in by_case.values() for _, affix in own)
    repeated = [affix for affix, count in affixes.items() if count > 1 or len(by_case) == 1]
    words = [affix for affix in affixes if affix and not re.fullmatch(r"[\d_\-. ]+", affix)]
    result.objects = not (len(words) == len(affixes) and len(repeated) == len(affixes))
    if not result.objects:
        result.classes = sorted(affixes)
