"""`hrmedseg zeroshot`: how well the untrained network segments a data set from boxes (v1, Table 4; v2, Table 5).

The boxes are those of the truth, so the figures are an upper bound of what a user who draws boxes will get. Volumes are
gone through slice by slice and measured as volumes.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections import Counter
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import region_or_label_to_mask
from scipy import ndimage
from tqdm import tqdm

from nnunet_hrmedseg.errors import HRMedSegError, format_names, format_shape
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
from nnunet_hrmedseg.prompting.networks import PromptableNetwork, load_promptable, load_whole_sam
from nnunet_hrmedseg.prompting.predictor import Predictor
from nnunet_hrmedseg.prompting.prompts import Box, Prompt

__all__ = ["boxes_of", "jittered", "zeroshot"]


SHOWN = [measure for measure in MEASURES if measure != "NSD"]  # which needs a tolerance


@dataclass(frozen=True)
class Row:
    """A line of cases.csv."""

    network: str
    case: str
    category: str
    boxes: int
    measures: dict[str, float]  # those of SHOWN that there are


def zeroshot(args: argparse.Namespace) -> int:
    """Run the command with the arguments of `promptable.arguments.add_zeroshot_arguments`.

    Raises:
        HRMedSegError: whatever the user can mend.
    """
    check_output_dir(Path(args.output or "."))
    folder, dataset_json, cases = _cases(args)
    surfaces = surface_measures_available()
    if not surfaces:
        print("HD95 and HD are left out: they need MONAI. pip install 'nnunet_hrmedseg[compare]'")
    task = Task.from_dataset(dataset_json, Path(next(iter(cases.values()))[1]), 0.0, surfaces)
    reader = find_reader_by_trying(folder, dataset_json, [images for images, _ in cases.values()])
    output = Path(args.output or f"hrmedseg_zeroshot_{folder.name}")
    if (output / "cases.csv").exists():
        raise HRMedSegError(f"{output / 'cases.csv'} exists already. Give -o another folder.")
    make_output_dir(output)
    rows: list[Row] = []
    with processes(args.device) as group:
        network = load_promptable(args.encoder, args.sam)
        networks: dict[str, PromptableNetwork] = {type(network).__name__: network}
        if args.teacher is not None:
            whole = args.teacher or args.sam
            networks[f"whole {Path(whole).name}"] = load_whole_sam(whole)
        predictors = {name: Predictor(each, group.device, args.prompts_at_once) for name, each in networks.items()}
        for number, (case, (images, label)) in enumerate(tqdm(cases.items(), "Segmenting", unit="case")):
            try:
                pixels = case_pixels(CaseFiles.of(images, reader))
                check_format(label)
                truth, properties = task.reader.read_seg(label)
            except Exception as error:  # readers raise what they like
                raise HRMedSegError(f"Case {case} cannot be read: {error}") from error
            if pixels.shape[:3] != truth[0].shape:
                sizes = [
                    format_shape(shape[1:] if shape[0] == 1 else shape) for shape in (pixels.shape[:3], truth[0].shape)
                ]
                raise HRMedSegError(f"Case {case}: its image is {sizes[0]}, its label {sizes[1]} pixels in size.")
            random = np.random.default_rng([args.seed, number])
            masks = {name: region_or_label_to_mask(truth[0], value) for name, value in task.classes.items()}
            prompts = _prompts(masks, args.boxes, args.jitter, random)
            counts = Counter(prompt.category for of_slice in prompts for prompt in of_slice)
            seen = np.ones(truth[0].shape, bool) if task.ignore_label is None else truth[0] != task.ignore_label
            for name, predictor in predictors.items():
                predicted = _predict(predictor, pixels, prompts, masks, args.multimask or None)
                for category, count in counts.items():
                    found = task.measure_masks(masks[category], predicted[category], seen, properties["spacing"])
                    rows.append(Row(name, case, category, count, {m: found[m] for m in SHOWN if m in found}))
    if not rows:
        raise HRMedSegError(f"There is no foreground in the labels of {folder}: nothing to draw boxes around.")
    means = {name: _means(rows, name, list(task.classes)) for name in predictors}
    print(_table(means, len(cases), task.unit))
    with reporting_write_errors(output / "cases.csv"):
        write_atomically(output / "cases.csv", _as_csv(rows).encode())
    summary = {
        "dataset": folder.name,
        "split": "Ts" if args.test else "Tr",
        "cases": len(cases),
        "boxes": args.boxes,
        "jitter": args.jitter,
        "seed": args.seed,
        "multimask": args.multimask,
        "encoder": network.encoder_file.sha256,
        "sam": Path(args.sam).name,
        "unit": task.unit,
        "surface_library": surface_library() if surfaces else None,
        "means": means,
    }
    with reporting_write_errors(output / "summary.json"):
        write_atomically(output / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    print(f"Wrote {output / 'cases.csv'} and summary.json beside it.")
    return 0


# ---- boxes -----------------------------------------------------------------------------------------------------------


def boxes_of(mask: np.ndarray, per: str) -> list[Box]:
    """The tightest boxes around what is True in a mask (H, W): x0, y0, x1, y1, the edges of its outermost pixels.

    per: "class", one around everything; "component", one around each connected component, corners count as connected.
    """
    parts = mask.astype(np.uint8) if per == "class" else ndimage.label(mask, np.ones((3, 3)))[0]
    found = (where for where in ndimage.find_objects(parts) if where is not None)
    return [(float(x.start), float(y.start), float(x.stop), float(y.stop)) for y, x in found]


def jittered(box: Box, size: tuple[int, int], jitter: float, random: np.random.Generator) -> Box:
    """Each side moved by up to `jitter` pixels (below 1: parts of the box's width and height), uniformly; the box stays
    in an image of `format_shape` (H, W), and a pixel of it is left.
    """
    if not jitter:
        return box
    x0, y0, x1, y1 = box
    reach = np.array([x1 - x0, y1 - y0] * 2) * jitter if jitter < 1 else np.full(4, jitter)
    x0, y0, x1, y1 = (np.array(box) + random.uniform(-reach, reach)).tolist()
    height, width = size
    x0, y0 = min(max(x0, 0.0), width - 1.0), min(max(y0, 0.0), height - 1.0)
    return x0, y0, max(min(x1, float(width)), x0 + 1), max(min(y1, float(height)), y0 + 1)


def _prompts(masks: dict[str, np.ndarray], per: str, jitter: float, random: np.random.Generator) -> list[list[Prompt]]:
    """Boxes around the classes of a case, masks (Z, H, W), for each slice."""
    depth, height, width = next(iter(masks.values())).shape
    return [
        [
            Prompt(jittered(box, (height, width), jitter, random), category=name)
            for name, mask in masks.items()
            for box in boxes_of(mask[z], per)
        ]
        for z in range(depth)
    ]


# ---- measuring -------------------------------------------------------------------------------------------------------


def _predict(
    predictor: Predictor,
    pixels: np.ndarray,
    prompts: list[list[Prompt]],
    like: dict[str, np.ndarray],
    multimask: bool | None,
) -> dict[str, np.ndarray]:
    """For each class what the masks of its prompts cover together: pixels (Z, H, W) or (Z, H, W, 3) -> (Z, H, W)."""
    predicted = {name: np.zeros_like(mask) for name, mask in like.items()}
    for z, of_slice in enumerate(prompts):
        if of_slice:
            predictor.set_image(pixels[z])
        for index, mask, _ in predictor.of_prompts(of_slice, multimask):
            predicted[of_slice[index].category][z] |= mask
    return predicted


def _means(rows: list[Row], network: str, classes: list[str]) -> dict[str, dict[str, float]]:
    """Means over the cases that have a class, for each class; and the mean of these."""
    means = {}
    for name in classes:
        of_class = [row for row in rows if row.network == network and row.category == name]
        if of_class:
            means[name] = {m: fmean(row.measures[m] for row in of_class) for m in of_class[0].measures}
            means[name]["cases"] = len(of_class)
    over_classes = {m: fmean(mean[m] for mean in means.values()) for m in next(iter(means.values())) if m != "cases"}
    return {**means, "mean": over_classes}


def _table(means: dict[str, dict[str, dict[str, float]]], cases: int, unit: str) -> str:
    measured = [m for m in SHOWN if any(m in mean for of_network in means.values() for mean in of_network.values())]
    titles = [f"{m} ({unit})" if MEASURES[m].has_unit else m for m in measured]
    lines = [["network", "class", "cases", *titles]]
    for network, of_network in means.items():
        for name, mean in of_network.items():
            numbers = [f"{mean[m]:.{2 if MEASURES[m].has_unit else 4}f}" if m in mean else "-" for m in measured]
            lines.append([network, name, str(mean.get("cases", cases)), *numbers])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def _as_csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["network", "case", "class", "boxes", *SHOWN])
    for row in rows:
        texts = [f"{row.measures[m]:.{3 if MEASURES[m].has_unit else 5}f}" if m in row.measures else "" for m in SHOWN]
        names = map(escape_formula, (row.network, row.case, row.category))
        writer.writerow([*names, row.boxes, *texts])
    return text.getvalue()


# ---- the data set ----------------------------------------------------------------------------------------------------


def _cases(args: argparse.Namespace) -> tuple[Path, dict[str, Any], dict[str, tuple[list[str], str]]]:
    """Folder, dataset.json, and case -> images, label."""
    folder = resolve_source(args.dataset)
    try:
        dataset_json = read_dataset_json(folder / "dataset.json")
    except HRMedSegError as error:
        raise HRMedSegError(f"{folder} is no nnU-Net raw data set: {error}") from error
    ending = dataset_json["file_ending"]
    if args.test:
        labels = sorted((folder / "labelsTs").glob(f"*{escape(ending)}"))
        names = {file.name[: -len(ending)]: file for file in labels if not is_hidden(file.name)}
        cases = {
            name: (sorted(map(str, (folder / "imagesTs").glob(f"{escape(name)}_????{escape(ending)}"))), str(file))
            for name, file in names.items()
        }
    else:
        found = find_raw_cases(folder, dataset_json) or {}
        cases = {name: (files.images, files.label) for name, files in found.items()}
    if not cases:
        raise HRMedSegError(f"{folder} has no labelled cases in {'labelsTs' if args.test else 'imagesTr'}.")
    wrong = [name for name, (images, label) in cases.items() if not images or not Path(label).is_file()]
    if wrong:
        raise HRMedSegError(f"Cases of {folder} without image or label: {format_names(wrong)}.")
    for sentence in describe_unused_files(folder, [RawCase(*files) for files in cases.values()], args.test):
        print(sentence)
    if args.limit is not None and args.limit < len(cases):
        chosen = np.linspace(0, len(cases) - 1, args.limit).round().astype(int).tolist()
        cases = dict(list(cases.items())[i] for i in chosen)
    return folder, dataset_json, cases
