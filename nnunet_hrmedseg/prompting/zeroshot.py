"""Measure how well the untrained network segments a dataset from boxes (v1, Table 4; v2, Table 5).

The boxes are drawn around the labels, so the measures are an upper bound for boxes that users draw. Volumes are
segmented slice by slice and measured as volumes.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import region_or_label_to_mask
from tqdm import tqdm

from nnunet_hrmedseg.errors import DataError, HRMedSegError, PlanError, SetupError, format_names, format_shape
from nnunet_hrmedseg.io.files import (
    check_output_dir,
    escape_formula,
    make_output_dir,
    reporting_write_errors,
    write_atomically,
)
from nnunet_hrmedseg.io.processes import processes
from nnunet_hrmedseg.io.raw_cases import (
    RawCase,
    describe_unused_files,
    find_raw_cases,
    find_reader_by_trying,
    read_dataset_json,
    resolve_source,
)
from nnunet_hrmedseg.io.skipped import is_hidden
from nnunet_hrmedseg.io.stored_images import CaseFiles, case_pixels, check_format
from nnunet_hrmedseg.measures import MEASURES, Task, surface_library, surface_measures_available
from nnunet_hrmedseg.prompting.boxes import prompts_of_slices
from nnunet_hrmedseg.prompting.networks import PromptableNetwork, load_promptable, load_whole_sam
from nnunet_hrmedseg.prompting.options import PromptingOptions
from nnunet_hrmedseg.prompting.predictor import Predictor
from nnunet_hrmedseg.prompting.prompts import Prompt

__all__ = ["ZeroshotResult", "ZeroshotRow", "zeroshot"]

SHOWN = [measure for measure in MEASURES if measure != "NSD"]  # NSD needs a tolerance
Cases = dict[str, tuple[list[str], str]]
"""Case -> files of its image, file of its label."""


@dataclass(frozen=True)
class ZeroshotRow:
    """One class of one case, segmented by one network; a line of cases.csv.

    Attributes:
        network: Name of the network.
        case: Name of the case.
        category: The class.
        boxes: Number of boxes that were given.
        measures: Measure -> value; without surface distances if MONAI is missing.
    """

    network: str
    case: str
    category: str
    boxes: int
    measures: dict[str, float]


@dataclass(frozen=True)
class ZeroshotResult:
    """What `zeroshot` measured.

    Attributes:
        folder: Folder of cases.csv and summary.json.
        rows: One for each network, case and class.
        means: Network -> class -> measure -> mean over the cases that have the class; "mean" is over the classes.
        cases: Number of cases.
        unit: Unit of distances: "mm" or "px".
    """

    folder: Path
    rows: list[ZeroshotRow]
    means: dict[str, dict[str, dict[str, float]]]
    cases: int
    unit: str

    def table(self) -> str:
        """Return the means as a table of text."""
        return _table(self.means, self.cases, self.unit)


def zeroshot(
    *,
    dataset: str | os.PathLike,
    encoder: str | os.PathLike | None,
    sam: str | os.PathLike | None,
    whole_sam: str | os.PathLike | None = None,
    test: bool = False,
    limit: int | None = None,
    boxes: str = "component",
    jitter: float = 0.0,
    seed: int = 0,
    output: str | os.PathLike | None = None,
    options: PromptingOptions | None = None,
) -> ZeroshotResult:
    """Measure Dice, IoU and HD95 of masks that are predicted from boxes around the labels of a dataset.

    Args:
        dataset: nnU-Net raw dataset: name, number or folder.
        encoder: Encoder file that was distilled from the SAM.
        sam: The SAM: Meta's or MobileSAM's .pth, or a folder in the format of transformers.
        whole_sam: SAM to measure as well with its own image encoder, from the same boxes.
        test: Use imagesTs and labelsTs instead of imagesTr and labelsTr.
        limit: Maximum number of cases, evenly spaced; None for all.
        boxes: "component" for one box around each connected component of an image or slice, or "class" for one around
            each class.
        jitter: Maximum random shift of each side in pixels; below 1, as a fraction of the box's own size.
        seed: Seed of `jitter`.
        output: Folder for cases.csv and summary.json; None for hrmedseg_zeroshot_DATASET in the current folder.
        options: Device, number of masks for a prompt, memory.

    Returns:
        Measures of every case, and their means.

    Raises:
        CheckpointError: Encoder or SAM are missing, damaged, or do not belong together.
        DataError: The dataset has no labeled cases, or a case cannot be used.
        PlanError: A wrong option.
        SetupError: The output folder cannot be used, or the device or a package is missing.

    Examples:
        ```python
        from nnunet_hrmedseg import PromptingOptions, zeroshot

        result = zeroshot(
            dataset="Dataset001_Discs",  # in nnUNet_raw
            encoder="encoder.safetensors",
            sam="sam.pth",
            options=PromptingOptions(device="cpu"),
        )
        print(result.table())
        assert 0 <= result.means["HRMedSegSAM"]["mean"]["Dice"] <= 1
        ```
    """
    options = options or PromptingOptions()
    if boxes not in ("component", "class") or not jitter >= 0 or (limit is not None and limit < 1):
        raise PlanError(
            f"boxes must be component or class, jitter at least 0 and limit at least 1, not {boxes!r:.100}, {jitter} "
            f"and {limit}."
        )
    check_output_dir(Path(output or "."))
    folder, dataset_json, cases = _find_cases(dataset, test, limit)
    surfaces = surface_measures_available()
    if not surfaces:
        print("HD95 and HD are left out: they need MONAI. pip install 'nnunet_hrmedseg[compare]'")
    task = Task.from_dataset(dataset_json, Path(next(iter(cases.values()))[1]), 0.0, surfaces)
    reader = find_reader_by_trying(folder, dataset_json, [images for images, _ in cases.values()])
    output = Path(output or f"hrmedseg_zeroshot_{folder.name}")
    if (output / "cases.csv").exists():
        raise SetupError(f"{output / 'cases.csv'} exists already. Give -o another folder.")
    make_output_dir(output)
    with processes(options.device) as group:
        network = load_promptable(encoder, sam)
        networks: dict[str, PromptableNetwork] = {type(network).__name__: network}
        if whole_sam is not None:
            networks[f"whole {Path(whole_sam).name}"] = load_whole_sam(whole_sam)
        predictors = {name: Predictor(each, group.device, options.prompts_at_once) for name, each in networks.items()}
        rows: list[ZeroshotRow] = []
        for number, (case, files) in enumerate(tqdm(cases.items(), "Segmenting", unit="case")):
            random = np.random.default_rng([seed, number])
            opened = _read_case(case, files, reader, task)
            prompts = prompts_of_slices(opened.masks, boxes, jitter, random)
            rows += _measure_case(opened, prompts, predictors, task, options.multimask or None)
    if not rows:
        raise DataError(f"There is no foreground in the labels of {folder}: nothing to draw boxes around.")
    means = {name: _means(rows, name, list(task.classes)) for name in predictors}
    result = ZeroshotResult(output, rows, means, len(cases), task.unit)
    settings = {
        "dataset": folder.name,
        "split": "Ts" if test else "Tr",
        "cases": len(cases),
        "boxes": boxes,
        "jitter": jitter,
        "seed": seed,
        "multimask": options.multimask,
        "encoder": network.encoder_file.sha256,
        "sam": Path(os.fspath(sam or "")).name,
        "unit": task.unit,
        "surface_library": surface_library() if surfaces else None,
    }
    try:
        _write(result, settings)
    except HRMedSegError:
        print(result.table())  # the measurement may have taken hours
        raise
    return result


def _write(result: ZeroshotResult, settings: Mapping[str, Any]) -> None:
    summary = {**settings, "means": result.means}
    for file, text in (
        (result.folder / "cases.csv", _as_csv(result.rows)),
        (result.folder / "summary.json", json.dumps(summary, indent=2) + "\n"),
    ):
        with reporting_write_errors(file):
            write_atomically(file, text.encode("utf-8", "backslashreplace"))


# ---- measuring -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Case:
    """A case as it was read.

    Attributes:
        name: Its name.
        pixels: (Z, H, W) or (Z, H, W, 3).
        masks: Class -> mask (Z, H, W).
        seen: Pixels that are not ignored, (Z, H, W).
        spacing: Of the label, as nnU-Net's reader gives it.
    """

    name: str
    pixels: np.ndarray
    masks: dict[str, np.ndarray]
    seen: np.ndarray
    spacing: Any


def _read_case(name: str, files: tuple[list[str], str], reader: Any, task: Task) -> _Case:
    images, label = files
    try:
        pixels = case_pixels(CaseFiles.of(images, reader))
        check_format(label)
        truth, properties = task.reader.read_seg(label)
    except Exception as error:  # readers raise errors of many types
        raise DataError(f"Case {name} cannot be read: {error}") from error
    if pixels.shape[:3] != truth[0].shape:
        sizes = [format_shape(shape[1:] if shape[0] == 1 else shape) for shape in (pixels.shape[:3], truth[0].shape)]
        raise DataError(f"Case {name}: its image is {sizes[0]}, its label {sizes[1]} pixels in size.")
    masks = {category: region_or_label_to_mask(truth[0], value) for category, value in task.classes.items()}
    seen = np.ones(truth[0].shape, bool) if task.ignore_label is None else truth[0] != task.ignore_label
    return _Case(name, pixels, masks, seen, properties["spacing"])


def _measure_case(
    case: _Case,
    prompts: list[list[Prompt]],
    predictors: Mapping[str, Predictor],
    task: Task,
    multimask: bool | None,
) -> Iterator[ZeroshotRow]:
    """Yield the measures of every network and every class that has a box."""
    counts = Counter(prompt.category for in_slice in prompts for prompt in in_slice)
    for name, predictor in predictors.items():
        predicted = _predict(predictor, case.pixels, prompts, case.masks, multimask)
        for category, count in counts.items():
            found = task.measure_masks(case.masks[category], predicted[category], case.seen, case.spacing)
            measures = {measure: found[measure] for measure in SHOWN if measure in found}
            yield ZeroshotRow(name, case.name, category, count, measures)


def _predict(
    predictor: Predictor,
    pixels: np.ndarray,
    prompts: list[list[Prompt]],
    like: Mapping[str, np.ndarray],
    multimask: bool | None,
) -> dict[str, np.ndarray]:
    """Return the union of the masks of each class: pixels (Z, H, W) or (Z, H, W, 3) -> class -> (Z, H, W)."""
    predicted = {name: np.zeros_like(mask) for name, mask in like.items()}
    for z, in_slice in enumerate(prompts):
        if in_slice:
            predictor.set_image(pixels[z])
        for index, mask, _ in predictor.predict_prompts(in_slice, multimask):
            predicted[in_slice[index].category][z] |= mask
    return predicted


def _means(rows: Sequence[ZeroshotRow], network: str, classes: list[str]) -> dict[str, dict[str, float]]:
    """Return means over the cases that have a class, for each class; and the mean of these."""
    means = {}
    for name in classes:
        in_class = [row for row in rows if row.network == network and row.category == name]
        if in_class:
            means[name] = {m: fmean(row.measures[m] for row in in_class) for m in in_class[0].measures}
            means[name]["cases"] = len(in_class)
    over_classes = {m: fmean(mean[m] for mean in means.values()) for m in next(iter(means.values())) if m != "cases"}
    return {**means, "mean": over_classes}


def _table(means: dict[str, dict[str, dict[str, float]]], cases: int, unit: str) -> str:
    measured = [
        m for m in SHOWN if any(m in mean for network_means in means.values() for mean in network_means.values())
    ]
    titles = [f"{m} ({unit})" if MEASURES[m].has_unit else m for m in measured]
    lines = [["network", "class", "cases", *titles]]
    for network, network_means in means.items():
        for name, mean in network_means.items():
            numbers = [f"{mean[m]:.{2 if MEASURES[m].has_unit else 4}f}" if m in mean else "-" for m in measured]
            lines.append([network, name, str(mean.get("cases", cases)), *numbers])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def _as_csv(rows: Sequence[ZeroshotRow]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["network", "case", "class", "boxes", *SHOWN])
    for row in rows:
        texts = [f"{row.measures[m]:.{3 if MEASURES[m].has_unit else 5}f}" if m in row.measures else "" for m in SHOWN]
        names = map(escape_formula, (row.network, row.case, row.category))
        writer.writerow([*names, row.boxes, *texts])
    return text.getvalue()


# ---- the dataset -----------------------------------------------------------------------------------------------------


def _find_cases(dataset: str | os.PathLike, test: bool, limit: int | None) -> tuple[Path, dict[str, Any], Cases]:
    """Return folder, dataset.json, and the cases."""
    folder = resolve_source(os.fspath(dataset))
    try:
        dataset_json = read_dataset_json(folder / "dataset.json")
    except HRMedSegError as error:
        raise DataError(f"{folder} is not an nnU-Net raw dataset: {error}") from error
    found = _test_cases(folder, dataset_json["file_ending"]) if test else _training_cases(folder, dataset_json)
    if not found:
        raise DataError(f"{folder} has no labeled cases in {'labelsTs' if test else 'imagesTr'}.")
    wrong = [name for name, (images, label) in found.items() if not images or not Path(label).is_file()]
    if wrong:
        raise DataError(f"Cases of {folder} without image or label: {format_names(wrong)}.")
    for sentence in describe_unused_files(folder, [RawCase(*files) for files in found.values()], test):
        print(sentence)
    if limit is not None and limit < len(found):
        chosen = np.linspace(0, len(found) - 1, limit).round().astype(int).tolist()
        found = dict(list(found.items())[index] for index in chosen)
    return folder, dataset_json, found


def _training_cases(folder: Path, dataset_json: dict[str, Any]) -> Cases:
    found = find_raw_cases(folder, dataset_json) or {}
    return {name: (files.images, files.label) for name, files in found.items()}


def _test_cases(folder: Path, ending: str) -> Cases:
    labels = sorted((folder / "labelsTs").glob(f"*{escape(ending)}"))
    names = {file.name[: -len(ending)]: file for file in labels if not is_hidden(file.name)}
    return {
        name: (sorted(map(str, (folder / "imagesTs").glob(f"{escape(name)}_????{escape(ending)}"))), str(file))
        for name, file in names.items()
    }
