"""Compare learning rates and losses in short trainings: the same network, data and time with the trainers in recipes/.

    python benchmarks/learning_rate.py prepare DATA WORK
    python benchmarks/learning_rate.py train   WORK DATASET RECIPE [--canvas 1024] [--minutes 10]
    python benchmarks/learning_rate.py record  WORK

DATA and WORK are those of real_data.py. The 60 cases differ from those of real_data.py, so that the recipe is not
chosen on cases with reported results. One fold, from random weights; pin a training to a core with `taskset -c 0`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path

try:
    from benchmarks import real_data
    from benchmarks.recorded_rows import add_row
except ModuleNotFoundError:  # as a script
    import real_data  # type: ignore[import-not-found, no-redef]
    from recorded_rows import add_row  # type: ignore[import-not-found, no-redef]

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "learning_rate.json"
PLANS = real_data.PLANS
DATASETS = {
    name: dataclasses.replace(real_data.DATASETS[name], number=number, first=60)
    for name, number in {"jsrt": 941, "dsb2018": 942}.items()
}
ROWS = (
    "PaperDecay5e4",
    "Poly1e3",
    "Poly2e3",
    "Beta95",
    "Decoder03",
    "Decoder01",
    "Transformer01",
    "Readout10",
    "LengthAware",
)
RECIPES = [f"nnUNetTrainerHRMedSeg{row}" for row in ROWS]
RECIPES += ["nnUNetTrainerHERSegScratch", "nnUNetTrainerHERSegDiceFocal"]


def plans_name(canvas: int) -> str:
    return PLANS if canvas == 1024 else f"{PLANS}_{canvas}"


def prepare(data: Path, work: Path) -> None:
    for name, dataset in DATASETS.items():
        raw = work / "nnUNet_raw" / real_data.folder_name(name, dataset)
        if not (raw / "dataset.json").is_file():
            real_data.write_raw(data, raw, name, dataset)
        if not (work / "nnUNet_preprocessed" / real_data.folder_name(name, dataset) / f"{PLANS}.json").is_file():
            options = ["-c", "2d", "-pl", "nnUNetPlannerHRMedSeg", "-npfp", 1, "-np", 1]
            real_data.command(work, "nnUNetv2_plan_and_preprocess", "-d", dataset.number, *options)


def train(work: Path, name: str, recipe: str, canvas: int, minutes: float) -> None:
    folder = real_data.folder_name(name, DATASETS[name])
    preprocessed = work / "nnUNet_preprocessed" / folder
    real_data.write_plans_of_canvas(preprocessed, plans_name(canvas), [canvas, canvas])
    os.environ["nnUNet_extTrainer"] = str(HERE / "recipes")
    which = ["-d", DATASETS[name].number, "-tr", recipe, "-p", plans_name(canvas), "-f", 0]
    output = work / "comparisons" / f"{folder}_{recipe}_{canvas}"
    budget = ["--train", "--minutes", minutes, "-device", "cpu", "--cost_images", 0]
    real_data.command(work, "hrmedseg", "compare", *which, *budget, "-o", output)


def record(work: Path) -> None:
    for name, dataset in DATASETS.items():
        models = work / "nnUNet_results" / real_data.folder_name(name, dataset)
        for summary in sorted(models.glob("*/fold_0/validation/summary.json")):
            recipe, plans, _ = summary.parents[2].name.split("__")
            if recipe not in RECIPES:
                continue
            budget = json.loads((summary.parents[1] / "budget.json").read_text())
            means = json.loads(summary.read_text())
            row = {
                "dataset": name,
                "canvas": int(plans.removeprefix(PLANS).strip("_") or 1024),
                "recipe": recipe,
                "minutes": budget["minutes"],
                "iterations": budget["iterations"],
                "Dice": means["foreground_mean"]["Dice"],
            }
            row |= {
                f"Dice {label}": means["mean"][str(value)]["Dice"] for label, value in dataset.labels.items() if value
            }
            add_row(RESULTS, row, ("dataset", "canvas", "recipe", "minutes"), "one core each")
            print(row)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    step = steps.add_parser("prepare")
    step.add_argument("data", type=real_data.absolute)
    step.add_argument("work", type=real_data.absolute)
    step = steps.add_parser("train")
    step.add_argument("work", type=real_data.absolute)
    step.add_argument("name", metavar="dataset", choices=DATASETS)
    step.add_argument("recipe", choices=RECIPES)
    step.add_argument("--canvas", type=int, default=1024)
    step.add_argument("--minutes", type=float, default=10)
    step = steps.add_parser("record")
    step.add_argument("work", type=real_data.absolute)
    args = vars(parser.parse_args())
    {"prepare": prepare, "train": train, "record": record}[args.pop("step")](**args)
