"""Make an nnU-Net raw dataset from a folder of images and their masks."""

from __future__ import annotations

import json
import multiprocessing.dummy
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from nnunet_hrmedseg.datasets.contact_sheet import CASES_SHOWN, contact_sheet, thumbnail
from nnunet_hrmedseg.datasets.groups import check_planned_splits, find_groups, make_splits, suspected_groups
from nnunet_hrmedseg.datasets.masks import Color
from nnunet_hrmedseg.datasets.pixels import read_image
from nnunet_hrmedseg.datasets.sources import MaskSource, find_source
from nnunet_hrmedseg.datasets.writing import write_image, write_pixels
from nnunet_hrmedseg.errors import DataError, HRMedSegError, format_names, format_shape
from nnunet_hrmedseg.io.dicom import SUFFIXES as DICOM_SUFFIXES
from nnunet_hrmedseg.io.dicom_seg import write_label_map
from nnunet_hrmedseg.io.file_names import describe_alike
from nnunet_hrmedseg.io.files import check_output_dir
from nnunet_hrmedseg.io.instances import BORDER, CORE, INSTANCES
from nnunet_hrmedseg.io.new_dataset import (
    building_directory,
    check_keeps_inputs,
    free_dataset_folder,
    write_dataset_json,
)
from nnunet_hrmedseg.nnunet_versions import nnunet_folder, required_nnunet_folder
from nnunet_hrmedseg.plans.splits import NNUNET_FOLDS, SPLITS

__all__ = ["DatasetSummary", "make_dataset"]

CHANNEL_NAMES = {1: ("gray",), 3: ("R", "G", "B")}
SHEET = "contact_sheet.png"
ERRORS_SHOWN = 20


@dataclass
class DatasetSummary:
    """Properties of images and masks, and the location of the dataset.

    Attributes:
        labels: class -> value, as in dataset.json.
        coding: how the masks were interpreted.
        channels: 1 or 3.
        file_ending: of images and label maps in the dataset.
        folder: of the dataset; None if nothing was written.
        splits: path of splits_final.json, if groups were given.
        cases: names.
        sizes: (height, width) -> number of images.
        dtypes: number type -> number of images.
        pixels: class -> fraction of all pixels.
        cases_with: class -> number of cases that contain it.
        warnings: what to check before training.
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
        """Return a summary to check before training, as lines of text."""
        heights, widths = zip(*self.sizes, strict=True)
        extent = format_shape((heights[0], widths[0]))
        if len(self.sizes) > 1:
            extent = f"{min(heights)} to {max(heights)} x {min(widths)} to {max(widths)}"
        colors = "gray" if self.channels == 1 else "RGB"
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
    images: str | os.PathLike[str],
    masks: str | os.PathLike[str],
    *,
    number: int,
    name: str,
    raw: str | os.PathLike[str] | None = None,
    classes: Sequence[str] = (),
    colors: Mapping[str, Color] | None = None,
    threshold: int | None = None,
    ignore: int | None = None,
    groups: str | None = None,
    instances: bool = False,
    link: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    show: Callable[[str], None] = print,
) -> DatasetSummary:
    """Write an nnU-Net raw dataset, Dataset<number>_<name>.

    All images and masks are checked before anything is written, and the dataset is complete or does not exist.

    Args:
        images: folder of images, searched recursively.
        masks: folder of masks of the same names, with a prefix or suffix; or a COCO file, or a folder of labelme files.
        number: of the dataset, 1 to 999.
        name: of the dataset: letters, digits, - and _.
        raw: folder to write to. Default: nnUNet_raw.
        classes: names of the classes in the order of their values.
        colors: class -> color of color-coded masks, or of background (default: black) and ignore, the pixels that were
            not annotated. Default: each color is a class.
        threshold: mask pixels of at least this value are the only class, or the class of their file.
        ignore: mask value of pixels that were not annotated.
        groups: CSV file (columns case and group) or regular expression. Cases of a group stay in one fold: a
            splits_final.json is written, which nnU-Net's planner copies.
        instances: each mask file, value, color or polygon is an object. The labels are the core and the border of
            objects, from which `separate_instances` gets the objects back; `classes` may name the objects.
        link: hard-link image files that nnU-Net can read as they are, instead of copying them.
        dry_run: describe the files and write nothing.
        overwrite: replace the dataset of this number and name.
        show: receives the description of the files.

    Raises:
        DataError: files that do not match or cannot be read, all in one message.
        PlanError: a number, name or option that is not possible.
        SetupError: nnUNet_raw is not set, the dataset exists already, or it was planned with other groups.

    Examples:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from PIL import Image
        >>> from nnunet_hrmedseg import make_dataset
        >>> for folder in ("images", "masks"):
        ...     Path(folder).mkdir()
        >>> for case in range(5):
        ...     mask = np.zeros((48, 64), np.uint8)
        ...     mask[8:32, 8 : 16 + case] = 255
        ...     Image.fromarray(mask).save(f"masks/{case}.png")
        ...     Image.fromarray(mask // 2 + 60).save(f"images/{case}.png")
        >>> summary = make_dataset("images", "masks", number=12, name="Cells", classes=["cell"])
        5 cases, gray, 48 x 64 pixels (height x width), uint8
        masks: 0 -> 0, 255 -> 1
        ...
        >>> summary.folder.name
        'Dataset012_Cells'
    """
    raw = Path(required_nnunet_folder("nnUNet_raw") if raw is None else raw)
    folder = free_dataset_folder(raw, number, name, overwrite=overwrite)
    check_keeps_inputs(folder, [Path(images), Path(masks)])
    if not dry_run:
        check_output_dir(raw)
    source = find_source(
        Path(images),
        Path(masks),
        classes=classes,
        colors=colors,
        threshold=threshold,
        ignore=ignore,
        instances=instances,
    )
    summary, tiles = _scan(source)
    group_of = find_groups(summary.cases, groups) if groups else None
    if group_of is None and (found := suspected_groups(summary.cases)):
        summary.warnings.append(
            f"names look like several images of one patient or video ({found[0]}..., {found[1]} prefixes in all). "
            f"If so, keep them in one fold with --groups, or validation will be too optimistic."
        )
    splits = make_splits(group_of) if group_of else []
    if splits and len(splits) < NNUNET_FOLDS:
        summary.warnings.append(
            f"{len(splits)} groups make {len(splits)} folds: train the folds 0 to {len(splits) - 1} alone. For other "
            f"folds, nnU-Net splits the cases at random and does not keep groups together."
        )
    if group_of is None and len(summary.cases) < NNUNET_FOLDS:
        summary.warnings.append(
            f"nnU-Net makes {NNUNET_FOLDS} folds, but there is less than one case for each ({len(summary.cases)}): "
            f"train with the fold all, or give --groups"
        )
    alike = describe_alike(summary.cases)
    summary.warnings += [alike] if alike else []
    show(summary.describe())
    preprocessed = nnunet_folder("nnUNet_preprocessed")
    if splits and preprocessed is not None:
        check_planned_splits(splits, Path(preprocessed, folder.name, SPLITS))
    if dry_run:
        return summary
    with building_directory(folder, overwrite=overwrite) as incomplete:
        _write(source, summary, incomplete, link, instances)
        contact_sheet(tiles, source.classes).save(incomplete / SHEET)
        if splits:
            (incomplete / SPLITS).write_text(json.dumps(splits, indent=2), encoding="utf-8")
        _verify(incomplete)
    summary.folder = folder
    summary.splits = folder / SPLITS if splits else None
    return summary


def _scan(source: MaskSource) -> tuple[DatasetSummary, list[tuple[str, Image.Image]]]:
    """Read every case once, and collect all errors.

    Returns:
        the summary, and thumbnails of evenly spaced cases.

    Raises:
        DataError: all errors in one message.
    """
    summary = DatasetSummary(source.labels, source.describe(), warnings=list(source.notes))
    counts, total = np.zeros(len(source.labels), np.int64), 0
    errors: list[str] = []
    colored, dimensions = False, set()
    shown = set(np.linspace(0, len(source.cases) - 1, min(CASES_SHOWN, len(source.cases))).astype(int).tolist())
    tiles: list[tuple[str, Image.Image]] = []
    for index, case in enumerate(tqdm(source.cases, desc="Reading", unit="case", leave=False, disable=None)):
        try:
            pixels = read_image(case.image)
            labels = source.label_map(case, pixels.shape[:2])
        except HRMedSegError as error:
            errors.append(str(error))
            continue
        summary.cases.append(case.name)
        summary.sizes[pixels.shape[0], pixels.shape[1]] += 1
        summary.dtypes[str(pixels.dtype)] += 1
        dimensions.add(pixels.ndim)
        colored |= pixels.ndim == 3 and not (pixels == pixels[..., :1]).all()
        own_counts = np.bincount(labels.ravel(), minlength=len(counts))
        counts += own_counts
        total += labels.size
        summary.cases_with.update(name for name, value in source.labels.items() if own_counts[value])
        if index in shown:
            tiles.append((case.name, thumbnail(pixels, labels)))
    if errors:
        more = f"\n  and {len(errors) - ERRORS_SHOWN} more" if len(errors) > ERRORS_SHOWN else ""
        listed = "\n  ".join(errors[:ERRORS_SHOWN])
        raise DataError(
            f"{len(errors)} of {len(source.cases)} cases cannot be used; nothing was written:\n  {listed}{more}"
        )
    summary.channels = 3 if colored else 1
    deep = colored and any(dtype != "uint8" for dtype in summary.dtypes)
    fits_png = set(summary.dtypes) <= {"uint8", "uint16"}
    summary.file_ending = ".png" if fits_png and not deep else ".tif"
    dicom = [case.image.name.lower().endswith(DICOM_SUFFIXES) for case in source.cases]
    if all(dicom) and len(dimensions) == 1:
        summary.file_ending, summary.channels = ".dcm", 3 if dimensions == {3} else 1
    elif any(dicom):
        summary.warnings.append(
            f"{sum(dicom)} of {len(dicom)} images are DICOM: they become {summary.file_ending} files, and so must the "
            f"images to predict. A folder of DICOM alone, all gray or all in color, is kept as it is."
        )
    summary.pixels = {name: float(counts[value] / total) for name, value in source.labels.items()}
    empty = [name for name, value in source.labels.items() if value and not summary.cases_with[name]]
    if empty:
        summary.warnings.append(f"no case contains {format_names(empty)}")
    blank = len(summary.cases) - max(summary.cases_with[name] for name in source.classes)
    if len(source.classes) == 1 and blank:
        summary.warnings.append(f"{blank} masks are empty")
    return summary, tiles


def _write(source: MaskSource, summary: DatasetSummary, folder: Path, link: bool, instances: bool) -> None:
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    ending = summary.file_ending
    for case in tqdm(source.cases, desc="Writing", unit="case", leave=False, disable=None):
        pixels = read_image(case.image)
        place = folder / "imagesTr" / f"{case.name}_0000{ending}"
        write_image(place, case.image, pixels, summary.channels, link=link)
        place = folder / "labelsTr" / f"{case.name}{ending}"
        labels = source.label_map(case, pixels.shape[:2])
        if ending == ".dcm":
            write_label_map(labels[None], place, case.image, {value: name for name, value in source.labels.items()})
        else:
            write_pixels(place, labels)
    further: dict[str, object] = {}
    if ending == ".dcm":
        further["overwrite_image_reader_writer"] = "HRMedSegDicomIO"
    if instances:
        further[INSTANCES] = {"core": CORE, "border": BORDER}
    write_dataset_json(
        folder,
        channels=CHANNEL_NAMES[summary.channels],
        labels=source.labels,
        cases=len(source.cases),
        file_ending=ending,
        **further,
    )


@contextmanager
def _threads_for_processes(module: Any) -> Iterator[None]:
    """Give a module threads where it starts processes by `multiprocessing.get_context`."""
    before = module.multiprocessing
    module.multiprocessing = SimpleNamespace(get_context=lambda method: multiprocessing.dummy)
    try:
        yield
    finally:
        module.multiprocessing = before


def _verify(folder: Path) -> None:
    """Run nnU-Net's integrity check. Its output is shown only if it fails.

    The check runs in a thread. A process would import the user's script, and a script without `if __name__ ==
    "__main__"` would make the dataset again, and start a process again, without end.
    """
    nnunet = import_module("nnunetv2.experiment_planning.verify_dataset_integrity")
    printed = StringIO()
    try:
        with redirect_stdout(printed), _threads_for_processes(nnunet):
            nnunet.verify_dataset_integrity(str(folder), num_processes=1)
    except (Exception, SystemExit) as error:
        raise DataError(f"nnU-Net's integrity check failed ({error}):\n{printed.getvalue().strip()}") from error
