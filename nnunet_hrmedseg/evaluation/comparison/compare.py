"""Compare models: find them, measure them on the same cases, and write tables and the report."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from tqdm import tqdm

from nnunet_hrmedseg.errors import HRMedSegError, PlanError, format_names
from nnunet_hrmedseg.evaluation.comparison.content import as_content, as_csv, as_table
from nnunet_hrmedseg.evaluation.comparison.cost import costs
from nnunet_hrmedseg.evaluation.comparison.gallery import Panel, chosen_cases, panels
from nnunet_hrmedseg.evaluation.comparison.inputs import (
    ComparisonInputs,
    PredictionFolders,
    TrainedModels,
    load_inputs,
)
from nnunet_hrmedseg.evaluation.comparison.matching import Matched, choose_baseline, match
from nnunet_hrmedseg.evaluation.comparison.missing import TrainingOptions, train_missing
from nnunet_hrmedseg.evaluation.comparison.models import Model
from nnunet_hrmedseg.evaluation.comparison.report import report, require_template_engine
from nnunet_hrmedseg.evaluation.comparison.results import Results
from nnunet_hrmedseg.evaluation.comparison.summaries import check_summary
from nnunet_hrmedseg.io.child_processes import ignoring_ctrl_c
from nnunet_hrmedseg.io.devices import choose_device
from nnunet_hrmedseg.io.files import atomic_path, check_output_dir, make_output_dir, reporting_write_errors
from nnunet_hrmedseg.measures import Task, surface_library, surface_measures_available

__all__ = ["ComparisonResult", "compare"]

FEW_JOBS = 50  # up to this number, measure in this process: a worker imports torch, which takes seconds

Measured = dict[str, dict[str, dict[str, float]]]  # case -> class -> measure -> value


@dataclass(frozen=True)
class ComparisonResult:
    """A comparison and the files it was written to.

    Attributes:
        results: the values of all models, cases, classes and measures as arrays.
        content: means, intervals, tests and costs, as in comparison.json.
        report: the report, an HTML page.
        json: comparison.json.
        cases: cases.csv, with a row for each model, case and class.
    """

    results: Results
    content: dict[str, Any]
    report: Path
    json: Path
    cases: Path

    def table(self) -> str:
        """Return means with 95 % intervals and differences to the baseline, in Markdown."""
        return as_table(self.content)


def compare(
    models: str | int | TrainedModels | PredictionFolders,
    *,
    baseline: str | None = None,
    training: TrainingOptions | None = None,
    tolerance: float = 2.0,
    cost_images: int = 3,
    device: str | None = None,
    processes: int | None = None,
    output: str | os.PathLike[str] | None = None,
) -> ComparisonResult:
    """Measure models on the same cases, test them against a baseline, and write a report.

    Args:
        models: a dataset's name or number for all its trained models, a selection of them, or folders of predictions.
        baseline: the model that the others are tested against: its name, or a part that no other name has. Default:
            the first one of nnUNetTrainer, else the first model.
        training: train missing folds of the selected trainers first.
        tolerance: distance up to which boundaries agree in the normalized surface Dice, in mm, or in pixels for
            natural images.
        cost_images: number of images that every model predicts to measure its time; 0 for none.
        device: "cuda", "mps" or "cpu", to train and predict on. Default: the first of these that is available.
        processes: number of processes that measure cases. Default: nnUNet_def_n_proc, else 8.
        output: folder of the report. Default: hrmedseg_comparison_DATASET.

    Raises:
        PlanError: an unknown dataset or baseline, or options that exclude each other.
        DataError: models, predictions or reference segmentations that are missing or unreadable.
        SetupError: a device, folder, environment variable or package that is missing, or an output that cannot be
            written.

    Examples:
        >>> import json
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from PIL import Image
        >>> from nnunet_hrmedseg import PredictionFolders, compare
        >>> for folder, shift in (("truth", 0), ("ours", 1), ("theirs", 4)):
        ...     Path(folder).mkdir()
        ...     for case in range(6):
        ...         mask = np.zeros((32, 32), np.uint8)
        ...         mask[8 + shift : 20 + shift, 8 : 20 + case] = 1
        ...         Image.fromarray(mask).save(f"{folder}/case_{case}.png")
        >>> labels = {"background": 0, "cell": 1}
        >>> description = {"channel_names": {"0": "gray"}, "labels": labels, "numTraining": 6, "file_ending": ".png"}
        >>> _ = Path("dataset.json").write_text(json.dumps(description))
        >>> folders = PredictionFolders({"ours": "ours", "theirs": "theirs"}, "truth", "dataset.json")
        >>> result = compare(folders, baseline="theirs", cost_images=0, device="cpu", output="report")
        >>> round(float(result.results.case_means("ours", "Dice").mean()), 2)
        0.92
        >>> result.report.name
        'report.html'
    """
    if isinstance(models, str | int):
        models = TrainedModels(models)
    check_output_dir(Path(output or "."))  # before hours of training
    require_template_engine()
    device = choose_device(device)
    if training is not None:
        if not isinstance(models, TrainedModels):
            raise PlanError("Folders of predictions cannot be trained: give the trained models of a dataset.")
        train_missing(models, training, device)
    inputs = load_inputs(models)
    baseline_model = choose_baseline(inputs.models, baseline)
    folds = models.folds if isinstance(models, TrainedModels) else None
    matched = match(inputs.models, baseline_model, inputs.truth, folds)
    matched.warnings += inputs.notes
    folder = make_output_dir(Path(output or f"hrmedseg_comparison_{inputs.name}"))  # fails before the long work

    surfaces = surface_measures_available()
    if not surfaces:
        matched.warnings.append(
            "Surface measures (NSD, HD95, HD) are left out: they need MONAI. pip install 'nnunet_hrmedseg[compare]'"
        )
    task = Task.from_dataset(inputs.dataset_json, next(iter(matched.truth.values())), tolerance, surfaces)
    measured = _measure(matched, task, processes or default_num_processes)
    _check_summaries(matched, task, measured)
    results = _results(inputs.name, baseline_model, matched, task, measured)

    results.costs = _costs(matched, inputs, cost_images, torch.device(device))
    gallery = list(_gallery(results, matched, inputs, task))
    content = as_content(results, device)
    texts = {
        "comparison.json": json.dumps(content, indent=1) + "\n",
        "cases.csv": as_csv(results),
        "report.html": report(results, content, gallery),
    }
    try:
        _write(folder, texts)
    except HRMedSegError:
        print(as_table(content))  # training and measurement may have taken hours
        raise
    files = {name: folder / name for name in texts}
    return ComparisonResult(results, content, files["report.html"], files["comparison.json"], files["cases.csv"])


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
        with ignoring_ctrl_c():  # workers start here
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
    """Write all files of a report, or none if one cannot be written."""
    with (
        reporting_write_errors(output, "Free some space and repeat the command, or give another folder with -o."),
        ExitStack() as stack,
    ):
        for name, text in texts.items():  # names of files may be other than UTF-8
            stack.enter_context(atomic_path(output / name)).write_bytes(text.encode("utf-8", "backslashreplace"))


def _check_summaries(matched: Matched, task: Task, measured: dict[Model, Measured]) -> None:
    for model, files in matched.files.items():
        for folder in sorted({file.parent for file in files.values()}):
            own = {file.name: measured[model][case] for case, file in files.items() if file.parent == folder}
            problem = check_summary(folder / "summary.json", dict(task.classes), own)
            if problem:
                matched.warnings.append(problem)


def _results(name: str, baseline: Model, matched: Matched, task: Task, measured: dict[Model, Measured]) -> Results:
    cases, classes = list(matched.truth), list(task.classes)

    def table(model: Model, keys: list[str]) -> np.ndarray:
        return np.array([[[measured[model][case][name][key] for key in keys] for name in classes] for case in cases])

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


def _costs(matched: Matched, inputs: ComparisonInputs, number: int, device: torch.device) -> dict[str, Any]:
    trained = {model.name: (model.folder, matched.folds[0]) for model in matched.files if model.folder}
    with_images = [inputs.images[case] for case in matched.truth if case in inputs.images]
    if trained and number and not with_images:
        matched.warnings.append("Prediction was not timed: there are no raw images of the cases in nnUNet_raw.")
    evenly_spaced = with_images[:: max(1, len(with_images) // max(number, 1))][:number]
    return costs(trained, evenly_spaced, device, matched.warnings)


def _gallery(
    results: Results, matched: Matched, inputs: ComparisonInputs, task: Task
) -> Iterable[tuple[str, str, list[Panel]]]:
    by_name = {model.name: files for model, files in matched.files.items()}
    if not inputs.images:
        results.warnings.append("There are no pictures: the raw images of the cases were not found.")
        return
    for why, case in chosen_cases(results):
        if case not in inputs.images:
            results.warnings.append(f"No picture of {case}: there is no image of {case} in {inputs.images_from}.")
            continue
        captions = {}
        for model in results.models:
            dice = results.case_means(model, "Dice")[results.cases.index(case)]
            captions[model] = (f"{results.titles[model]}: Dice {dice:.3f}", by_name[model][case])
        try:
            yield why, case, panels(inputs.images[case], matched.truth[case], captions, task)
        except Exception as error:  # readers raise anything; the rest of the report does not depend on the picture
            files = format_names([os.fspath(file) for file in inputs.images[case]])
            results.warnings.append(f"No picture of {case}: {files} cannot be read ({type(error).__name__}: {error}).")
