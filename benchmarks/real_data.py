"""HRMedSeg, HER-Seg and stock nnU-Net on real data, the same wall-clock budget and the same splits for each fold.

    python benchmarks/real_data.py prepare DATA WORK             raw data sets and plans
    python benchmarks/real_data.py train   WORK DATASET FOLD     every model of a data set, one after the other
    python benchmarks/real_data.py report  WORK                  docs/results: a report and figures for each data set

DATA/labelled holds a folder for each data set, with `images` and `masks` (class indices) of the same names. 60 cases of
jsrt (chest radiographs, 1024 x 1024) and of dsb2018 (nuclei, from 256 x 256), five folds; mlua_dental (caries on
radiographs of 2944 x 1435), one fold. Everything can be repeated and goes on where it stopped.

No image of a task may have been seen by the encoder that a training starts from, so the bundled one cannot be used:
WORK/encoders/all_but_nuclei_distilled and WORK/encoders/nuclei_skin_teeth_distilled, made by encoder_initialization.py,
take its place; for mlua_dental there is none, and training starts from random weights.

Trainings pinned to different cores can run side by side: `taskset -c 0 python benchmarks/real_data.py train ...`
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MINUTES = "10"  # of each fold
SMALL_CANVAS = [512, 512]


@dataclass(frozen=True)
class DataSet:
    """A row of the table: number, labels, how many cases, how many folds, and what its trainings start from."""

    number: int
    labels: dict[str, int]
    cases: int
    folds: int
    grey: bool
    encoder: str | None
    small_canvas: bool = False

    def folder(self, name: str) -> str:
        return f"Dataset{self.number}_{name}"


DATASETS = {
    "jsrt": DataSet(
        931, {"background": 0, "lungs": 1, "heart": 2, "clavicles": 3}, 60, 5, True, "nuclei_skin_teeth_distilled"
    ),
    "dsb2018": DataSet(
        932, {"background": 0, "nucleus": 1}, 60, 5, False, "all_but_nuclei_distilled", small_canvas=True
    ),
    "mlua_dental": DataSet(933, {"background": 0, "caries": 1}, 24, 1, True, None),
}
PLANS, SMALL_PLANS = "nnUNetHRMedSegPlans", "nnUNetHRMedSegPlans_512"
MODELS = [("nnUNetTrainer", "nnUNetPlans"), ("nnUNetTrainerHRMedSeg", PLANS), ("nnUNetTrainerHERSeg", PLANS)]
SMALL_MODELS = [("nnUNetTrainerHRMedSeg", SMALL_PLANS)]


def models(dataset: DataSet) -> list[tuple[str, str]]:
    return MODELS + (SMALL_MODELS if dataset.small_canvas else [])


def environment(work: Path) -> dict[str, str]:
    folders = {name: str(work / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    return {**os.environ, **folders, "nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1", "nnUNet_compile": "f"}


def command(work: Path, name: str, *arguments: str | Path, **extra: str) -> None:
    executable = Path(sys.executable).parent / name
    subprocess.run([executable, *map(str, arguments)], env={**environment(work), **extra}, check=True)


def prepare(data: Path, work: Path) -> None:
    for name, dataset in DATASETS.items():
        raw = work / "nnUNet_raw" / dataset.folder(name)
        if not (raw / "dataset.json").is_file():
            write_raw(data / "labelled" / name, raw, dataset)
        preprocessed = work / "nnUNet_preprocessed" / dataset.folder(name)
        if not (preprocessed / "nnUNetPlans.json").is_file():
            command(
                work, "nnUNetv2_plan_and_preprocess", "-d", str(dataset.number), "-c", "2d", "-npfp", "1", "-np", "1"
            )
        if not (preprocessed / f"{PLANS}.json").is_file():
            planner = ["-pl", "nnUNetPlannerHRMedSeg"]
            command(work, "nnUNetv2_plan_experiment", "-d", str(dataset.number), *planner)
        if dataset.small_canvas:
            plans = json.loads((preprocessed / f"{PLANS}.json").read_text())
            plans["plans_name"] = SMALL_PLANS
            plans["configurations"]["2d"]["patch_size"] = SMALL_CANVAS
            (preprocessed / f"{SMALL_PLANS}.json").write_text(json.dumps(plans, indent=4))


def write_raw(source: Path, raw: Path, dataset: DataSet) -> None:
    from PIL import Image

    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True, exist_ok=True)
    masks = {file.stem: file for file in (source / "masks").iterdir()}
    files = sorted((source / "images").iterdir())
    chosen = np.random.default_rng(0).permutation(len(files))[: dataset.cases]
    for file in (files[i] for i in sorted(chosen)):
        Image.open(file).convert("L" if dataset.grey else "RGB").save(raw / "imagesTr" / f"{file.stem}_0000.png")
        Image.open(masks[file.stem]).save(raw / "labelsTr" / f"{file.stem}.png")
    channels = {"0": "grey"} if dataset.grey else {"0": "R", "1": "G", "2": "B"}
    description = {
        "channel_names": channels,
        "labels": dataset.labels,
        "numTraining": len(chosen),
        "file_ending": ".png",
    }
    (raw / "dataset.json").write_text(json.dumps(description, indent=2))


def train(work: Path, name: str, fold: str) -> None:
    dataset = DATASETS[name]
    encoder = work / "encoders" / dataset.encoder / "encoder.safetensors" if dataset.encoder else "none"
    for trainer, plans in models(dataset):
        command(
            work,
            "hrmedseg",
            *("compare", "-d", str(dataset.number), "--train", "-tr", trainer, "-p", plans, "-f", fold),
            *("--minutes", MINUTES, "-device", "cpu", "--cost_images", "0"),
            *("-o", work / "comparisons" / f"{name}_{trainer}_{plans}_{fold}"),
            HRMEDSEG_ENCODER_WEIGHTS=str(encoder),
        )


def report(work: Path) -> None:
    results = Path(__file__).parent.parent / "docs" / "results"
    for name, dataset in DATASETS.items():
        output = work / "comparisons" / name
        command(
            work, "hrmedseg", "compare", "-d", str(dataset.number), "--cost_images", "5", "-device", "cpu", "-o", output
        )
        (results / name).mkdir(parents=True, exist_ok=True)
        for file in ("comparison.json", "cases.csv"):
            (results / name / file).write_bytes((output / file).read_bytes())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    step = steps.add_parser("prepare")
    step.add_argument("data", type=lambda text: Path(text).absolute())
    step.add_argument("work", type=lambda text: Path(text).absolute())
    step = steps.add_parser("train")
    step.add_argument("work", type=lambda text: Path(text).absolute())
    step.add_argument("dataset", choices=DATASETS)
    step.add_argument("fold")
    step = steps.add_parser("report")
    step.add_argument("work", type=lambda text: Path(text).absolute())
    args = parser.parse_args()
    if args.step == "prepare":
        prepare(args.data, args.work)
    elif args.step == "train":
        train(args.work, args.dataset, args.fold)
    else:
        report(args.work)
