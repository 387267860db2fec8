"""Our networks and stock nnU-Net on real data: the same wall-clock budget, splits and machine for all models of a fold.

    python benchmarks/real_data.py prepare DATA WORK                  raw datasets, plans, preprocessed data
    python benchmarks/real_data.py train   WORK DATASET FOLD [MODEL]  every model, one after the other, or one of them
    python benchmarks/real_data.py record  WORK DATASET FOLD          compares them; figures to results/real_data
    python benchmarks/real_data.py report                             docs/benchmarks, from all folds that are recorded

DATA holds `labelled`, with a folder of `images` and `masks` (class indices, same names) for each dataset, and
`volumes/msd_hippocampus`, as nnU-Net's raw folders. 60 cases of jsrt (chest radiographs, 1024 x 1024) and of dsb2018
(nuclei, from 256 x 256), five folds; mlua_dental (caries on radiographs of 2944 x 1435) and msd_hippocampus (MR
volumes), one fold. Everything can be repeated and goes on where it stopped; folds may be recorded on different days and
machines, as every fold's figures say which.

The bundled encoder was made from these datasets, among others, so all models start from random weights: what is
compared is networks and recipes, and what an encoder is worth besides stands in encoder_initialization.py.

Trainings pinned to different cores can run side by side: `taskset -c 0 python benchmarks/real_data.py train ...`
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RECORDED = HERE / "results" / "real_data"
RESULTS = HERE.parent / "docs" / "benchmarks"
PLANS, SMALL_PLANS = "nnUNetHRMedSegPlans", "nnUNetHRMedSegPlans_512"
SMALL_CANVAS = [512, 512]
STOCK, HRMEDSEG, HERSEG, SEGMAFORMER = (
    ("nnUNetTrainer", "nnUNetPlans"),
    ("nnUNetTrainerHRMedSegScratch", PLANS),
    ("nnUNetTrainerHERSegScratch", PLANS),
    ("nnUNetTrainerSegMaFormer", "nnUNetPlans"),
)
HRMEDSEG_512 = ("nnUNetTrainerHRMedSegScratch", SMALL_PLANS)
MODEL_TITLES = {
    STOCK: "stock nnU-Net",
    HRMEDSEG: "HRMedSeg",
    HRMEDSEG_512: "HRMedSeg on a canvas of 512",
    HERSEG: "HER-Seg",
    SEGMAFORMER: "SegMaFormer",
}
OVERVIEW = ("<!-- written by benchmarks/real_data.py report -->\n", "<!-- end of what is written -->\n")


@dataclass(frozen=True)
class DataSet:
    """A row of the table."""

    number: int
    title: str
    labels: dict[str, int]
    channels: tuple[str, ...]
    cases: int
    folds: int
    models: tuple[tuple[str, str], ...] = (STOCK, HRMEDSEG, HERSEG)
    minutes: int = 10  # of each model and fold
    configuration: str = "2d"
    first: int = 0  # of the cases, in an order drawn at random
    cost_images: int = 3  # that every model of the first fold predicts for its time


DATASETS = {
    "jsrt": DataSet(
        931,
        "organs on chest radiographs, 1024 x 1024 pixels (JSRT)",
        {"background": 0, "lungs": 1, "heart": 2, "clavicles": 3},
        ("grey",),
        60,
        5,
    ),
    "dsb2018": DataSet(
        932,
        "nuclei, 256 x 256 to 1388 x 1040 pixels (Data Science Bowl 2018)",
        {"background": 0, "nucleus": 1},
        ("R", "G", "B"),
        60,
        5,
        (STOCK, HRMEDSEG, HERSEG, HRMEDSEG_512),
    ),
    "mlua_dental": DataSet(
        933,
        "caries on panoramic radiographs, 2944 x 1435 pixels (MLUA)",
        {"background": 0, "caries": 1},
        ("grey",),
        24,
        1,
        minutes=40,  # tiny targets take some 1,000 batches
        cost_images=1,  # takes stock nnU-Net minutes
    ),
    "msd_hippocampus": DataSet(
        934,
        "hippocampus in MR volumes of about 36 x 50 x 35 voxels (Medical Segmentation Decathlon, task 4)",
        {"background": 0, "anterior": 1, "posterior": 2},
        ("MRI",),
        200,
        1,
        (STOCK, SEGMAFORMER),
        40,
        "3d_fullres",
    ),
}


def folder_name(name: str, dataset: DataSet) -> str:
    return f"Dataset{dataset.number}_{name}"


def absolute(path: str) -> Path:
    return Path(path).absolute()


def command(work: Path, name: str, *arguments: Any) -> None:
    folders = {folder: str(work / folder) for folder in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    environment = {**os.environ, **folders, "nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1", "nnUNet_compile": "f"}
    subprocess.run([Path(sys.executable).parent / name, *map(str, arguments)], env=environment, check=True)


def prepare(data: Path, work: Path) -> None:
    for name, dataset in DATASETS.items():
        raw = work / "nnUNet_raw" / folder_name(name, dataset)
        if not (raw / "dataset.json").is_file():
            write_raw(data, raw, name, dataset)
        preprocessed = work / "nnUNet_preprocessed" / folder_name(name, dataset)
        shared = ["-d", dataset.number, "-c", dataset.configuration, "-npfp", 1, "-np", 1]
        if not (preprocessed / "nnUNetPlans.json").is_file():
            command(work, "nnUNetv2_plan_and_preprocess", *shared)
        if any(plans == PLANS for _, plans in dataset.models) and not (preprocessed / f"{PLANS}.json").is_file():
            command(work, "nnUNetv2_plan_and_preprocess", *shared, "-pl", "nnUNetPlannerHRMedSeg")
        if HRMEDSEG_512 in dataset.models:
            write_plans_of_canvas(preprocessed, SMALL_PLANS, SMALL_CANVAS)


def write_plans_of_canvas(preprocessed: Path, name: str, canvas: list[int]) -> None:
    """The plans of HRMedSeg with another canvas, unless they are there."""
    if not (preprocessed / f"{name}.json").is_file():
        plans = json.loads((preprocessed / f"{PLANS}.json").read_text())
        plans["plans_name"] = name
        plans["configurations"]["2d"]["patch_size"] = canvas
        (preprocessed / f"{name}.json").write_text(json.dumps(plans, indent=4))


def write_raw(data: Path, raw: Path, name: str, dataset: DataSet) -> None:
    write: Callable[..., str] = write_volumes if dataset.configuration.startswith("3d") else write_images
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True, exist_ok=True)
    description = {
        "channel_names": {str(i): channel for i, channel in enumerate(dataset.channels)},
        "labels": dataset.labels,
        "file_ending": write(data, raw, name, dataset),
        "numTraining": len(list((raw / "labelsTr").iterdir())),
    }
    (raw / "dataset.json").write_text(json.dumps(description, indent=2))


def write_images(data: Path, raw: Path, name: str, dataset: DataSet) -> str:
    from PIL import Image

    source = data / "labelled" / name
    masks = {file.stem: file for file in (source / "masks").iterdir()}
    files = sorted((source / "images").iterdir())
    chosen = np.random.default_rng(0).permutation(len(files))[dataset.first :][: dataset.cases]
    for file in (files[i] for i in sorted(chosen)):
        image = Image.open(file).convert("L" if dataset.channels == ("grey",) else "RGB")
        image.save(raw / "imagesTr" / f"{file.stem}_0000.png")
        Image.open(masks[file.stem]).save(raw / "labelsTr" / f"{file.stem}.png")
    return ".png"


def write_volumes(data: Path, raw: Path, name: str, dataset: DataSet) -> str:
    source, ending = data / "volumes" / name, ".nii.gz"
    for file in sorted((source / "labelsTr").glob(f"*{ending}"))[: dataset.cases]:
        shutil.copy(file, raw / "labelsTr")
        case = file.name.removesuffix(ending)
        shutil.copy(source / "imagesTr" / file.name, raw / "imagesTr" / f"{case}_0000{ending}")
    return ending


def train(work: Path, name: str, fold: str, only: int | None) -> None:
    dataset = DATASETS[name]
    for trainer, plans in dataset.models if only is None else [dataset.models[only]]:
        which = ["-d", dataset.number, "-tr", trainer, "-p", plans, "-c", dataset.configuration, "-f", fold]
        output = work / "comparisons" / f"{name}_{trainer}_{plans}_{fold}"
        budget = ["--train", "--minutes", dataset.minutes]
        command(work, "hrmedseg", "compare", *which, *budget, "-device", "cpu", "--cost_images", 0, "-o", output)


def record(work: Path, name: str, fold: str) -> None:
    """The figures of a fold, without images or masks: many datasets may not be passed on."""
    output, dataset = work / "comparisons" / f"{name}_fold_{fold}", DATASETS[name]
    # what a model costs is the same in every fold: reported is that of the first
    costs = ["--cost_images", dataset.cost_images if fold == "0" else 0]
    which = ["-d", dataset.number, "-f", fold, "--no_ensembles"]
    command(work, "hrmedseg", "compare", *which, *costs, "-device", "cpu", "-o", output)
    add_to_recorded(output, RECORDED / name / f"fold_{fold}")


def add_to_recorded(output: Path, recorded: Path) -> None:
    """What is recorded of models that were not trained again stays, with its day."""
    content = json.loads((output / "comparison.json").read_text())
    cases = list(csv.DictReader((output / "cases.csv").open()))
    del content["tests"]  # of this fold alone; those of the report are over all folds
    for model in content["models"]:
        model["date"] = content["date"]
    if recorded.is_dir():
        before = json.loads((recorded / "comparison.json").read_text())
        names = {model["name"] for model in content["models"]}
        kept = [{"date": before["date"], **model} for model in before["models"] if model["name"] not in names]
        rows = list(csv.DictReader((recorded / "cases.csv").open()))
        cases = [row for row in rows if row["model"] not in names] + cases
        content["models"] = kept + content["models"]
        content["baseline"] = before["baseline"]
        for model in content["models"]:
            model["baseline"] = model["name"] == before["baseline"]
    recorded.mkdir(parents=True, exist_ok=True)
    (recorded / "comparison.json").write_text(json.dumps(content, indent=2) + "\n")
    with (recorded / "cases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(cases[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(cases)


def report() -> None:
    from nnunet_hrmedseg.evaluation.comparison.content import as_content, as_table

    overview = [overview_row("dataset", "held-out cases", "model", "Dice", "of each class"), "|---" * 5 + "|"]
    for name, dataset in DATASETS.items():
        folds = sorted((RECORDED / name).glob("fold_*"))
        if not folds:
            continue
        contents = [json.loads((fold / "comparison.json").read_text()) for fold in folds]
        content = as_content(pooled(folds, contents), "cpu")
        overview += overview_rows(name, dataset, content)
        title = f"# {dataset.title[0].upper()}{dataset.title[1:]}"
        model_titles = {model["name"]: model["title"] for model in content["models"]}
        parts = title, circumstances(dataset, contents), as_table(content), cost_table(contents, model_titles)
        (RESULTS / f"{name}.md").write_text("\n\n".join(part.strip() for part in parts) + "\n")
        print(f"{name}: {len(folds)} of {dataset.folds} folds")
    page = RESULTS / "index.md"
    before, rest = page.read_text().split(OVERVIEW[0])
    after = rest.split(OVERVIEW[1])[1]
    page.write_text(before + OVERVIEW[0] + "\n".join(overview) + "\n" + OVERVIEW[1] + after)


def overview_rows(name: str, dataset: DataSet, content: dict[str, Any]) -> list[str]:
    """Of docs/benchmarks/index.md: a dataset's models, the best first."""
    from nnunet_hrmedseg.evaluation.comparison.content import interval_text

    titles = {f"{trainer}__{plans}__": title for (trainer, plans), title in MODEL_TITLES.items()}
    mean, classes = next(iter(content["models"][0]["measures"])), content["classes"]
    rows = []
    for model in sorted(content["models"], key=lambda model: -model["measures"][mean]["Dice"]["mean"]):
        title = titles[model["name"].removesuffix(dataset.configuration)]
        each = ", ".join(f"{cls} {model['measures'][cls]['Dice']['mean']:.3f}" for cls in classes)
        interval = interval_text("Dice", model["measures"][mean]["Dice"])
        first = (f"[{dataset.title}]({name}.md)", str(content["cases"])) if not rows else ("", "")
        rows.append(overview_row(*first, title, interval, each if len(classes) > 1 else ""))
    return rows


def overview_row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def pooled(folds: list[Path], contents: list[dict[str, Any]]) -> Any:
    """All cases of all folds in one object, as `hrmedseg compare` makes it of trained models."""
    from nnunet_hrmedseg.evaluation.comparison.results import Results

    rows = [row for fold in folds for row in csv.DictReader((fold / "cases.csv").open())]
    names = list(dict.fromkeys(row["model"] for row in rows))
    cases = sorted({row["case"] for row in rows})  # as compare has them: the bootstrap draws from them in their order
    first = contents[0]
    classes, measures = first["classes"], list(next(iter(first["models"][0]["measures"].values())))
    shape = len(names), len(cases), len(classes)
    values, sizes, true_sizes = np.full((*shape, len(measures)), np.nan), np.zeros(shape), np.zeros(shape[1:])
    for row in rows:
        place = names.index(row["model"]), cases.index(row["case"]), classes.index(row["class"])
        values[place] = [float(row[measure] or "nan") for measure in measures]
        sizes[place], true_sizes[place[1:]] = float(row["size"]), float(row["size_truth"])
    if len(rows) != np.prod(shape):
        raise SystemExit(f"{folds[0].parent}: not every model has every case and class")
    return Results(
        dataset=first["dataset"],
        folds=[fold for content in contents for fold in content["folds"]],
        cases=cases,
        classes=classes,
        measures=measures,
        unit=first["unit"],
        dimensions=2,  # for the gallery, which there is none of
        tolerance=first["tolerance"],
        models=names,
        baseline=first["baseline"],
        values=dict(zip(names, values, strict=True)),
        sizes=dict(zip(names, sizes, strict=True)),
        true_sizes=true_sizes,
    )


def circumstances(dataset: DataSet, contents: list[dict[str, Any]]) -> str:
    days = sorted({model.get("date", content["date"]) for content in contents for model in content["models"]})
    processors = sorted({content["machine"]["processor"] for content in contents})
    versions = sorted({f"nnU-Net {c['versions']['nnunetv2']}, torch {c['versions']['torch']}" for c in contents})
    return (
        f"{len(contents)} of {dataset.folds} folds. For the training of a fold every model had {dataset.minutes} "
        f"minutes of one CPU core,\nwith the same splits and all from random weights; then nnU-Net's own validation.\n"
        f"{', '.join(days)}; {'; '.join(processors)}; {'; '.join(versions)}. Made by `benchmarks/real_data.py`."
    )


def cost_table(contents: list[dict[str, Any]], model_titles: dict[str, str]) -> str:
    """Of the first fold; the batches are those of all folds.

    model_titles: name of a model -> its title among all of them; a fold's own titles are among those it was made with.
    """
    titles = ("model", "parameters, M", "GMACs", "training memory, MiB per patch", "batches", "prediction, s per case")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for model in contents[0]["models"]:
        cost = model["cost"]
        costs = [other["cost"] for content in contents for other in content["models"] if other["name"] == model["name"]]
        batches = sorted(of_fold["iterations"] for of_fold in costs)
        cells = [
            model_titles[model["name"]],
            f"{cost['parameters'] / 1e6:.2f}",
            f"{cost['multiply_accumulates'] / 1e9:.1f}",
            f"{cost['training_bytes'] / 2**20:.0f}",
            f"{' to '.join(map(str, dict.fromkeys((batches[0], batches[-1]))))} of {cost['batch_size']}",
            f"{cost['predict_seconds']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    takes = {
        "prepare": ["data", "work"],
        "train": ["work", "dataset", "fold", "model"],
        "record": ["work", "dataset", "fold"],
        "report": [],
    }
    kinds: dict[str, dict[str, Any]] = {
        "data": {"type": absolute},
        "work": {"type": absolute},
        "dataset": {"choices": DATASETS},
        "fold": {},
        "model": {"type": int, "nargs": "?", "help": "its place in the table DATASETS, from 0; all without it"},
    }
    for step_name, arguments in takes.items():
        step = steps.add_parser(step_name)
        for argument in arguments:
            step.add_argument(argument, **kinds[argument])
    args = parser.parse_args()
    given = [getattr(args, argument) for argument in takes[args.step]]
    {"prepare": prepare, "train": train, "record": record, "report": report}[args.step](*given)
