"""Make an nnU-Net raw dataset out of a folder of images and their masks."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from tqdm import tqdm

from nnunet_hrmedseg.datasets.contact_sheet import CASES_SHOWN, contact_sheet, thumbnail
from nnunet_hrmedseg.datasets.groups import find_groups, make_splits, suspected_groups
from nnunet_hrmedseg.datasets.masks import Color
from nnunet_hrmedseg.datasets.pixels import orientation, read_image
from nnunet_hrmedseg.datasets.sources import MaskSource, find_source
from nnunet_hrmedseg.errors import HRMedSegError, format_names, format_shape
from nnunet_hrmedseg.io.files import replace_directory
from nnunet_hrmedseg.plans.splits import NNUNET_FOLDS, SPLITS

__all__ = ["DatasetSummary", "make_dataset"]

CHANNEL_NAMES = {1: ("grey",), 3: ("R", "G", "B")}
SHEET = "contact_sheet.png"
TOO_MANY_FAULTS = 20  # faults shown


@dataclass
class DatasetSummary:
    """What was found in the images and masks, and where the dataset was written.

    Attributes:
        folder: of the dataset; None where nothing was written.
        labels: class -> value, as in dataset.json.
        sizes: (height, width) -> number of images.
        channels: 1 or 3.
        dtypes: number type -> number of images.
        pixels: class -> share of all pixels.
        cases_with: class -> number of cases that show it.
        cases: names.
        warnings: what to look at before training.
        splits: path of splits_final.json, if groups were given.
    """

    labels: dict[str, int]
    coding: str
    channels: int = 1
    file_ending: str = ".png"
    folder: Path | None = None
    splits: Path | None = None
    cases: list[str] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    dtypes: Counter[str] = field(default_factory=Counter)
    pixels: dict[str, float] = field(default_factory=dict)
    cases_with: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """Return what a user wants to see before training, in lines."""
        heights, widths = zip(*self.sizes, strict=True)
        extent = format_shape((heights[0], widths[0]))
        if len(self.sizes) > 1:
            extent = f"{min(heights)} to {max(heights)} x {min(widths)} to {max(widths)}"
        colors = "grey" if self.channels == 1 else "RGB"
        lines = [
            f"{len(self.cases)} cases, {colors}, {extent} pixels (height x width), {format_names(list(self.dtypes))}"
        ]
        lines.append(f"masks: {self.coding}")
        lines.append(f"{'class':<24} {'value':>5} {'cases':>6} {'pixels':>8}")
        for name, value in self.labels.items():
            if value:
                share = f"{100 * self.pixels[name]:.3g} %"
                lines.append(f"{name:<24} {value:>5} {self.cases_with[name]:>6} {share:>8}")
        return "\n".join([*lines, *(f"Warning: {warning}" for warning in self.warnings)])


def make_dataset(
    images: Path,
    masks: Path,
    *,
    number: int,
    name: str,
    raw: Path,
    classes: Sequence[str] = (),
    colors: Mapping[str, Color] | None = None,
    threshold: int | None = None,
    ignore: int | None = None,
    groups: str | None = None,
    link: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    show: Callable[[str], None] = print,
) -> DatasetSummary:
    """Write `raw/Dataset<number>_<name>` and, with `groups`, a splits_final.json in it, which nnU-Net's planner copies.

    Every image and mask is looked at before anything is written, and the dataset appears whole or not at all.

    Args:
        images: folder of images; folders within it are searched, too.
        masks: folder of masks of the same names, with a prefix or suffix; or a COCO file, or a folder of labelme files.
        number: of the dataset, 1 to 999.
        name: of the dataset: letters, digits, - and _.
        raw: nnUNet_raw.
        classes: names of the classes in the order of their values.
        colors: class -> color of color-coded masks; default: as found.
        threshold: mask pixels of at least this value are the one class.
        ignore: mask value of pixels that were not annotated.
        groups: CSV file (columns case and group) or regular expression; cases of a group stay in one fold.
        link: hard-link image files that nnU-Net can read as they are, instead of copying them.
        dry_run: report and write nothing.
        overwrite: replace the dataset of this number and name.
        show: takes each line of the report.

    Raises:
        HRMedSegError: everything that is wrong with the files, in one message; wrong number or name; a dataset that
            is there already.
    """
    folder = _free_folder(raw, number, name, overwrite)
    source = find_source(images, masks, classes=classes, colors=colors, threshold=threshold, ignore=ignore)
    summary, tiles = _scan(source)
    group_of = find_groups(summary.cases, groups) if groups else None
    if group_of is None and (found := suspected_groups(summary.cases)):
        summary.warnings.append(
            f"names look like several images of one patient or video ({found[0]}..., {found[1]} such beginnings). Then "
            f"keep them in one fold with --groups, or validation is too optimistic."
        )
    if group_of is None and len(summary.cases) < NNUNET_FOLDS:
        summary.warnings.append(
            f"{len(summary.cases)} cases are fewer than nnU-Net's {NNUNET_FOLDS} folds: train with all in the place of "
            f"the fold, or give --groups"
        )
    summary.warnings += _alike(summary.cases)
    show(summary.describe())
    if dry_run:
        return summary
    incomplete = folder.with_name(f"incomplete_{folder.name}")
    shutil.rmtree(incomplete, ignore_errors=True)
    try:
        _write(source, summary, incomplete, link)
        contact_sheet(tiles, source.classes).save(incomplete / SHEET)
        if group_of is not None:
            (incomplete / SPLITS).write_text(json.dumps(make_splits(group_of), indent=2), encoding="utf-8")
        _verify(incomplete)
        replace_directory(incomplete, folder)
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)
    summary.folder = folder
    summary.splits = folder / SPLITS if group_of is not None else None
    return summary


def _alike(cases: Sequence[str]) -> list[str]:
    lower = Counter(case.lower() for case in cases)
    alike = [case for case in cases if lower[case.lower()] > 1]
    if not alike:
        return []
    return [
        f"{format_names(alike)} differ in upper and lower case alone: on Windows and macOS one would replace the other"
    ]


def _free_folder(raw: Path, number: int, name: str, overwrite: bool) -> Path:
    if not 1 <= number <= 999:
        raise HRMedSegError(f"The number of a dataset is 1 to 999, not {number}.")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise HRMedSegError(f"{name!r} cannot be the name of a dataset: use letters, digits, - and _.")
    folder = raw / f"Dataset{number:03d}_{name}"
    others = [other for other in sorted(raw.glob(f"Dataset{number:03d}_*")) if other != folder]
    if others:
        raise HRMedSegError(f"The number {number} is taken by {others[0]}. Choose another one.")
    if folder.exists() and not overwrite:
        raise HRMedSegError(f"{folder} is there already. Choose another number, or give --overwrite to replace it.")
    return folder


def _scan(source: MaskSource) -> tuple[DatasetSummary, list[tuple[str, Image.Image]]]:
    """Read every case once, and collect all that is wrong.

    Returns:
        the summary, and thumbnails of cases, evenly spaced.
    """
    summary = DatasetSummary(source.labels, source.describe(), warnings=list(source.notes))
    counts, total = np.zeros(len(source.labels), np.int64), 0
    faults: list[str] = []
    colored = False
    shown = set(np.linspace(0, len(source.cases) - 1, min(CASES_SHOWN, len(source.cases))).astype(int).tolist())
    tiles: list[tuple[str, Image.Image]] = []
    for index, case in enumerate(tqdm(source.cases, desc="Reading", unit="case", leave=False, disable=None)):
        try:
            pixels = read_image(case.image)
            labels = source.label_map(case, pixels.shape[:2])
        except HRMedSegError as error:
            faults.append(str(error))
            continue
        summary.cases.append(case.name)
        summary.sizes[pixels.shape[0], pixels.shape[1]] += 1
        summary.dtypes[str(pixels.dtype)] += 1
        colored |= pixels.ndim == 3 and not (pixels == pixels[..., :1]).all()
        of_case = np.bincount(labels.ravel(), minlength=len(counts))
        counts += of_case
        total += labels.size
        summary.cases_with.update(name for name, value in source.labels.items() if of_case[value])
        if index in shown:
            tiles.append((case.name, thumbnail(pixels, labels)))
    if faults:
        more = f"\n  and {len(faults) - TOO_MANY_FAULTS} more" if len(faults) > TOO_MANY_FAULTS else ""
        listed = "\n  ".join(faults[:TOO_MANY_FAULTS])
        raise HRMedSegError(
            f"{len(faults)} of {len(source.cases)} cases cannot be used; nothing was written:\n  {listed}{more}"
        )
    summary.channels = 3 if colored else 1
    deep = colored and any(dtype != "uint8" for dtype in summary.dtypes)
    fits_png = set(summary.dtypes) <= {"uint8", "uint16"}
    summary.file_ending = ".png" if fits_png and not deep else ".tif"
    summary.pixels = {name: counts[value] / total for name, value in source.labels.items()}
    empty = [name for name in source.classes if not summary.cases_with[name]]
    if empty:
        summary.warnings.append(f"no case shows {format_names(empty)}")
    blank = len(summary.cases) - max(summary.cases_with[name] for name in source.classes)
    if len(source.classes) == 1 and blank:
        summary.warnings.append(f"{blank} masks are empty")
    return summary, tiles


def _write(source: MaskSource, summary: DatasetSummary, folder: Path, link: bool) -> None:
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    ending = summary.file_ending
    for case in tqdm(source.cases, desc="Writing", unit="case", leave=False, disable=None):
        pixels = read_image(case.image)
        place = folder / "imagesTr" / f"{case.name}_0000{ending}"
        if _is_usable(case.image, pixels, summary):
            _link_or_copy(case.image, place, link)
        else:
            _save(place, _with_channels(pixels, summary.channels))
        _save(folder / "labelsTr" / f"{case.name}{ending}", source.label_map(case, pixels.shape[:2]))
    names = CHANNEL_NAMES[summary.channels]
    description = {
        "channel_names": {str(index): channel for index, channel in enumerate(names)},
        "labels": source.labels,
        "numTraining": len(source.cases),
        "file_ending": ending,
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _is_usable(file: Path, pixels: np.ndarray, summary: DatasetSummary) -> bool:
    """Whether nnU-Net reads from the file itself what `read_image` did."""
    if file.suffix.lower() != summary.file_ending or summary.file_ending != ".png" or orientation(file) != 1:
        return False
    with Image.open(file) as image:
        return image.mode == ("L" if summary.channels == 1 else "RGB") or (
            summary.channels == 1 and image.mode.startswith("I;16")
        )


def _link_or_copy(file: Path, place: Path, link: bool) -> None:
    if link:
        try:
            os.link(os.path.realpath(file), place)
            return
        except OSError:  # another file system, or one without hard links
            pass
    shutil.copyfile(file, place)


def _with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    if channels == 3 and pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=-1)
    return pixels[..., 0] if channels == 1 and pixels.ndim == 3 else pixels


def _save(place: Path, pixels: np.ndarray) -> None:
    if place.suffix == ".png":
        Image.fromarray(np.ascontiguousarray(pixels)).save(place)
    else:
        photometric = "rgb" if pixels.ndim == 3 else "minisblack"
        tifffile.imwrite(place, pixels, photometric=photometric, compression="zlib")


def _verify(folder: Path) -> None:
    """Run nnU-Net's own integrity check; what it prints is shown only where it fails."""
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    printed = StringIO()
    try:
        with redirect_stdout(printed):
            verify_dataset_integrity(str(folder), num_processes=1)
    except (Exception, SystemExit) as error:
        raise HRMedSegError(
            f"nnU-Net's integrity check refuses the dataset ({error}):\n{printed.getvalue().strip()}"
        ) from error
