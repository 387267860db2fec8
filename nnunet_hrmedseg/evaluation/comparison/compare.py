"""`hrmedseg compare`: find the models, measure them on the same cases, write tables and the report."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from tqdm import tqdm

from nnunet_hrmedseg.errors import format_names
from nnunet_hrmedseg.evaluation.comparison.content import as_content, as_csv, as_table
from nnunet_hrmedseg.evaluation.comparison.cost import costs
from nnunet_hrmedseg.evaluation.comparison.gallery import Panel, chosen_cases, panels
from nnunet_hrmedseg.evaluation.comparison.given import ComparisonInputs, load_inputs
from nnunet_hrmedseg.evaluation.comparison.matching import Matched, choose_baseline, match
from nnunet_hrmedseg.evaluation.comparison.models import Model
from nnunet_hrmedseg.evaluation.comparison.report import report
from nnunet_hrmedseg.evaluation.comparison.results import Results
from nnunet_hrmedseg.evaluation.comparison.summaries import check_summary
from nnunet_hrmedseg.io.child_processes import ignoring_ctrl_c
from nnunet_hrmedseg.io.devices import choose_device
from nnunet_hrmedseg.io.files import atomic_path, check_output_dir, make_output_dir, reporting_write_errors
from nnunet_hrmedseg.measures import Task, surface_library, surface_measures_are_there

__all__ = ["compare"]

FEW_JOBS = 50  # are measured in this process: a worker takes seconds to start, as it imports torch

Measured = dict[str, dict[str, dict[str, float]]]  # case -> class -> measure -> value


def compare(args: argparse.Namespace) -> int:
    """Compare, print the table, write report.html, comparison.json and cases.csv. Returns the exit status.

    Raises:
        HRMedSegError: nothing to compare, arguments that do not go together (see the modules of this package), or an
            output folder that cannot be written to.
    """
    check_output_dir(Path(args.output or "."))  # before hours of training
    device = choose_device(args.device)
    given = load_inputs(args)
    baseline = choose_baseline(given.models, args.baseline)
    matched = match(given.models, baseline, given.truth, args.f)
    matched.warnings += given.notes
    output = make_output_dir(Path(args.output or f"hrmedseg_comparison_{given.name}"))  # refused before the long work

    surfaces = surface_measures_are_there()
    if not surfaces:
        matched.warnings.append(
            "Surface measures (NSD, HD95, HD) are left out: they need MONAI. pip install 'nnunet_hrmedseg[compare]'"
        )
    task = Task.of_dataset(given.dataset_json, next(iter(matched.truth.values())), args.tolerance, surfaces)
    measured = _measure(matched, task, args.np or default_num_processes)
    _check_summaries(matched, task, measured)
    results = _results(given.name, baseline, matched, task, measured)

    results.costs = _costs(matched, given, args.cost_images, torch.device(device))
    gallery = list(_gallery(results, matched, given, task))
    content = as_content(results, device)
    print(as_table(content))
    for warning in results.warnings:
        print(f"Note: {warning}")

    _write(
        output,
        {
            "comparison.json": json.dumps(content, indent=1) + "\n",
            "cases.csv": as_csv(results),
            "report.html": report(results, content, gallery),
        },
    )
    print(f"Wrote {output / 'report.html'}, comparison.json and cases.csv beside it.")
    return 0


def _measure(matched: Matched, task: Task, processes: int) -> dict[Model, Measured]:
    jobs = [(model, case, file) for model, files in matched.files.items() for case, file in files.items()]
    truths, files = [matched.truth[case] for _, case, _ in jobs], [file for _, _, file in jobs]
    measured: dict[Model, Measured] = {model: {} for model in matched.files}
    if processes > 1 and len(jobs) > FEW_JOBS:
        values = _in_processes(processes, task, truths, files)
    else:
        values = map(task.measure, truths, files)
    for (model, case, _), value in zip(jobs, tqdm(values, "Measuring", len(jobs), unit="case"), strict=True):
        measured[model][case] = value
    return measured


def _in_processes(processes: int, task: Task, truths: Sequence[Path], files: Sequence[Path]) -> Iterator[Any]:
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        with ignoring_ctrl_c():  # they start here
            values = pool.map(partial(_one_thread, task), truths, files, chunksize=4)
        yield from values
    except BaseException:
        for worker in list((pool._processes or {}).values()):
            worker.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _one_thread(task: Task, truth: Path, prediction: Path) -> dict[str, dict[str, float]]:
    torch.set_num_threads(1)
    return task.measure(truth, prediction)


def _write(output: Path, texts: Mapping[str, str]) -> None:
    """Write the files of a report: all of them, or, if one cannot be written, none."""
    with (
        reporting_write_errors(output, "Make room, and repeat the command, or give -o another folder."),
        ExitStack() as stack,
    ):
        for name, text in texts.items():
            stack.enter_context(atomic_path(output / name)).write_bytes(text.encode())


def _check_summaries(matched: Matched, task: Task, measured: dict[Model, Measured]) -> None:
    for model, files in matched.files.items():
        for folder in sorted({file.parent for file in files.values()}):
            own = {file.name: measured[model][case] for case, file in files.items() if file.parent == folder}
            complaint = check_summary(folder / "summary.json", dict(task.classes), own)
            if complaint:
                matched.warnings.append(complaint)


def _results(name: str, baseline: Model, matched: Matched, task: Task, measured: dict[Model, Measured]) -> Results:
    cases, classes = list(matched.truth), list(task.classes)

    def table(model: Model, keys: list[str]) -> np.ndarray:
        return np.array([[[measured[model][case][of][key] for key in keys] for of in classes] for case in cases])

    return Results(
        dataset=name,
        folds=matched.folds,
        cases=cases,
        classes=classes,
        measures=task.measures,
        unit=task.unit,
        dimensions=3 if task.volumes else 2,
        surface_library=surface_library() if task.surfaces else None,
        tolerance=task.tolerance,
        models=[baseline.name, *(model.name for model in matched.files if model is not baseline)],
        baseline=baseline.name,
        values={model.name: table(model, task.measures) for model in matched.files},
        sizes={model.name: table(model, ["size"])[..., 0] for model in matched.files},
        true_sizes=table(baseline, ["size_truth"])[..., 0],
        warnings=matched.warnings,
    )


def _costs(matched: Matched, given: ComparisonInputs, number: int, device: torch.device) -> dict[str, Any]:
    trained = {model.name: (model.folder, matched.folds[0]) for model in matched.files if model.folder}
    with_images = [given.images[case] for case in matched.truth if case in given.images]
    if trained and number and not with_images:
        matched.warnings.append("Prediction was not timed: there are no raw images of the cases in nnUNet_raw.")
    evenly = with_images[:: max(1, len(with_images) // max(number, 1))][:number]
    return costs(trained, evenly, device, matched.warnings)


def _gallery(
    results: Results, matched: Matched, given: ComparisonInputs, task: Task
) -> Iterable[tuple[str, str, list[Panel]]]:
    by_name = {model.name: files for model, files in matched.files.items()}
    if not given.images:
        results.warnings.append("There are no pictures: the raw images of the cases are not in reach.")
        return
    for why, case in chosen_cases(results):
        if case not in given.images:
            results.warnings.append(f"No picture of {case}: there is no image of {case} in {given.images_from}.")
            continue
        captions = {}
        for model in results.models:
            dice = results.case_means(model, "Dice")[results.cases.index(case)]
            captions[model] = (f"{results.titles[model]}: Dice {dice:.3f}", by_name[model][case])
        try:
            yield why, case, panels(given.images[case], matched.truth[case], captions, task)
        except Exception as error:  # readers raise what they like; the rest of the report does not depend on it
            files = format_names([os.fspath(file) for file in given.images[case]])
            results.warnings.append(f"No picture of {case}: {files} cannot be read ({type(error).__name__}: {error}).")
