"""Match masks to images by name, with prefixes, suffixes, and folders of classes or objects."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from nnunet_hrmedseg.datasets.file_classes import Affix, file_classes
from nnunet_hrmedseg.datasets.name_parts import occurrences, shared_suffix, trim
from nnunet_hrmedseg.datasets.pixels import composed, is_image_file, stem
from nnunet_hrmedseg.datasets.polygons import Annotation
from nnunet_hrmedseg.errors import DataError, format_names
from nnunet_hrmedseg.io.raw_cases import check_training_names

__all__ = [
    "NO_IMAGES",
    "Case",
    "Matches",
    "assign_annotations",
    "case_names",
    "list_images",
    "match",
]

CHANNEL = re.compile(r"_0000$")
NO_IMAGES = "has no image files. Supported formats: PNG, JPEG, TIFF, BMP, WebP, GIF, DICOM and NIfTI."
RENAME = "give the images different names, and the annotations the same names or folders."


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
        outside: images outside the folders `images` and `masks`, if there are such folders.
        classes: names of the classes, if each class has its own files.
        objects: whether each file is an object of the same class.
        note: what to do if it is not; empty if there is no doubt.
    """

    cases: list[Case] = field(default_factory=list)
    images_without_mask: list[Path] = field(default_factory=list)
    masks_without_image: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    outside: list[Path] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    objects: bool = False
    note: str = ""


def list_images(folder: Path) -> tuple[list[Path], list[Path]]:
    """List the image files below a folder, sorted, and the other files, which are skipped.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.")
    files = sorted(_files_below(folder))
    images = [file for file in files if is_image_file(file) and not _is_hidden(file, folder)]
    chosen = set(images)
    return images, [file for file in files if file not in chosen]


def _is_hidden(file: Path, folder: Path) -> bool:
    """Return whether the name of a file, or of a folder in which it is, starts with a point: ._a.png on macOS."""
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


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


def match(images_folder: Path, masks_folder: Path, names: Sequence[str] = ()) -> Matches:
    """Match masks to images.

    A mask belongs to an image if their names are equal, if its name has an additional prefix or suffix after a
    separator (`case1_mask`, `mask-case1`), if it is in a folder with the name of the image, or if names are equal
    without the suffixes that all images and all masks share (`21_training` and `21_manual1`). Several masks of an image
    are classes or objects: see `file_classes`. Folders of cases with subfolders `images` and `masks`, as in the 2018
    Data Science Bowl, are supported too.

    Args:
        images_folder: folder of images.
        masks_folder: folder of masks; it may be a subfolder, or the same if masks have a prefix or suffix.
        names: of the classes, if the user gave them.

    Raises:
        DataError: no images, no masks, or names that nnU-Net cannot use.
        PlanError: several names of classes that the names of the files do not have.
    """
    images, skipped = list_images(images_folder)
    masks, skipped_masks = list_images(masks_folder)
    if masks_folder != images_folder and masks_folder.is_relative_to(images_folder):
        images = [file for file in images if not file.is_relative_to(masks_folder)]
    image_paths, mask_paths = _paths(images, images_folder, "images"), _paths(masks, masks_folder, "masks")
    if not images or not masks:
        folder = masks_folder if images else images_folder
        raise DataError(f"{folder} {NO_IMAGES}")
    if image_paths == mask_paths:
        image_paths, mask_paths = _split_by_name(image_paths, images_folder)
    cases = _case_names(_named_by_folder(image_paths))
    check_training_names(cases.items())
    result = Matches(skipped=sorted({*skipped, *skipped_masks}))
    left = {*images, *masks} - {*image_paths, *mask_paths}
    result.outside = sorted(file for file in left if file.parent.name not in ("images", "masks"))
    found = _assign(cases, image_paths, mask_paths)
    classes, result.note = file_classes(found, names)
    result.classes = sorted(set(classes.values()))
    by_case: dict[str, list[tuple[Path, str | None]]] = defaultdict(list)
    for mask in sorted(found):
        by_case[found[mask][0]].append((mask, classes.get(mask)))
    for name, image in cases.items():
        if name in by_case:
            result.cases.append(Case(name, image, tuple(by_case[name])))
        else:
            result.images_without_mask.append(image)
    result.objects = not classes and any(len(case.masks) > 1 for case in result.cases)
    result.masks_without_image = [mask for mask in mask_paths if mask not in found]
    return result


def _paths(files: Sequence[Path], folder: Path, part: str) -> dict[Path, tuple[str, ...]]:
    """Return file -> folders and stem, in composed characters.

    If some files are in folders of the name `part`, the paths are without that folder, and other files are left out.
    """
    paths = {file: tuple(map(composed, (*file.relative_to(folder).parts[:-1], stem(file)))) for file in files}
    inside = {file: path for file, path in paths.items() if part in path[:-1]}
    for file, path in inside.items():
        position = path.index(part)
        inside[file] = path[:position] + path[position + 1 :]
    return inside or paths


def _split_by_name(
    paths: Mapping[Path, tuple[str, ...]], folder: Path
) -> tuple[dict[Path, tuple[str, ...]], dict[Path, tuple[str, ...]]]:
    """Return images, and masks: files with the name of another file of their folder and a prefix or suffix.

    Raises:
        DataError: there are no such files.
    """
    stems: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for *folders, own in paths.values():
        stems[tuple(folders)].add(own)
    masks = {
        file: path
        for file, path in paths.items()
        if any(end - start < len(path[-1]) for start, end in occurrences(path[-1], stems[path[:-1]]))
    }
    if not masks:
        raise DataError(
            f"{folder} is given for images and for masks, but no file in it has the name of another file with a prefix "
            f"or suffix, such as case1_mask.png. Name the masks like that, or put them into another folder."
        )
    return {file: path for file, path in paths.items() if file not in masks}, masks


def _named_by_folder(paths: Mapping[Path, tuple[str, ...]]) -> dict[Path, tuple[str, ...]]:
    """Name an image CASE/images/FILE.png by CASE, if it is the only image of the case."""
    alone = Counter(path[:-1] for path in paths.values())
    in_case = {file for file, path in paths.items() if path[:-1] and file.parent.name == "images"}
    return {file: path[:-1] if file in in_case and alone[path[:-1]] == 1 else path for file, path in paths.items()}


def case_names(images: Sequence[Path], folder: Path) -> dict[str, Path]:
    """Return name -> image. A name is the path in the folder with _ for /, without suffix and channel number _0000.

    Raises:
        DataError: several images with the same name.
    """
    return _case_names({file: (*file.relative_to(folder).parts[:-1], stem(file)) for file in images})


def _case_names(paths: Mapping[Path, tuple[str, ...]]) -> dict[str, Path]:
    stems = {file: composed("_".join(path)) for file, path in paths.items()}
    if all(CHANNEL.search(name) for name in stems.values()):
        stems = {file: CHANNEL.sub("", name) for file, name in stems.items()}
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
    image_folders = map(composed, reversed(image.parts[:-1]))
    pairs = zip(reversed(PurePosixPath(path).parts[:-1]), image_folders, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _assign(
    cases: Mapping[str, Path], image_paths: Mapping[Path, tuple[str, ...]], mask_paths: Mapping[Path, tuple[str, ...]]
) -> dict[Path, tuple[str, Affix]]:
    """Return mask -> name of its case, and the rest of its path.

    A mask may fit two images: 2/1.png and 2_1.png fit image 1 and image 2. So each rule is applied to all masks, and
    the rule by which most masks, and then most images, match comes first.
    """
    keys = {name: name for name in cases}
    stems = {image_paths[image][-1]: name for name, image in cases.items()}
    if len(stems) == len(cases):  # otherwise files of the same name are in several folders
        keys = {**stems, **keys}
    nested = {name: name for name, image in cases.items() if len(image_paths[image]) > 1}
    beside: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)  # stems of images in the same folder
    for name, image in cases.items():
        beside[image_paths[image][:-1]][image_paths[image][-1]] = name
    exact: dict[Path, tuple[str, Affix]] = {}
    by_folder, by_start, by_end, by_part = (dict[Path, tuple[str, Affix]]() for _ in range(4))
    for mask, (*folders, own) in mask_paths.items():
        whole = "_".join((*folders, own))
        if whole in cases:
            exact[mask] = whole, ("", "", "")
            continue
        for position, folder in enumerate(folders):
            if folder in keys:  # of several, the last one
                others = "_".join(folders[:position] + folders[position + 1 :])
                start, end = next(occurrences(own, {folder, keys[folder]} - {own}), (0, 0))
                by_folder[mask] = keys[folder], (others, trim(own[:start]), trim(own[end:]))
        texts = (own, beside[tuple(folders)], ""), (whole, nested, ""), (own, keys, "_".join(folders))
        for text, known, others in texts:
            for start, end in occurrences(text, known):
                fits = known[text[start:end]], (others, trim(text[:start]), trim(text[end:]))
                by_part.setdefault(mask, fits)
                if start == 0:
                    by_start.setdefault(mask, fits)
                if end == len(text):
                    by_end.setdefault(mask, fits)
    rules = [by_end, by_start, by_folder]  # later rules override earlier ones
    rules.sort(key=lambda rule: (len(rule), len({name for name, _ in rule.values()})))
    found = {mask: fits for rule in (by_part, *rules, exact) for mask, fits in rule.items()}
    return found or _without_shared_suffixes(keys, mask_paths)


def _without_shared_suffixes(
    keys: Mapping[str, str], mask_paths: Mapping[Path, tuple[str, ...]]
) -> dict[Path, tuple[str, Affix]]:
    image_suffix = shared_suffix(list(keys))
    mask_suffix = shared_suffix([path[-1] for path in mask_paths.values()])
    bare = {key.removesuffix(image_suffix): name for key, name in keys.items()}
    found = {}
    for mask, path in mask_paths.items():
        texts = [text.removesuffix(mask_suffix) for text in ("_".join(path), path[-1])]
        name = next((bare[text] for text in texts if text in bare), None)
        if name is not None:
            found[mask] = name, ("", "", trim(mask_suffix))
    return found
