"""Separate nuclei: border labels from instance masks, a training, and the scores of the Data Science Bowl 2018.

    python benchmarks/instances.py prepare DATA WORK              dataset with borders, plans
    python benchmarks/instances.py train   WORK [--minutes 30]    HRMedSeg on the configuration 2d_512
    python benchmarks/instances.py score   WORK                   predict the test images; results, page and picture

DATA contains `labelled/dsb2018` (images, and masks with 1 = nucleus) and the published lists in `splits/dsb2018.json`.
The masks are unions of nuclei, so nuclei that touch count as one object, in the reference as well.

The score of the Data Science Bowl is the mean of TP / (TP + FP + FN) over the IoU thresholds 0.5, 0.55, ..., 0.95, with
one-to-one matches, averaged over images.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from nnunet_hrmedseg.io.files import write_atomically
from nnunet_hrmedseg.io.instances import match_instances
from nnunet_hrmedseg.io.machine import processor_name

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "instances.json"
PICTURE = ROOT / "docs" / "images" / "objects.png"
NUMBER, NAME = 951, "NucleiWithBorders"
TRAINER, PLANS, CONFIGURATION = "nnUNetTrainerHRMedSegScratch", "nnUNetHRMedSegPlans", "2d_512"
MODEL = ["-d", str(NUMBER), "-tr", TRAINER, "-p", PLANS, "-c", CONFIGURATION, "-f", "0"]
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
THRESHOLDS = np.arange(0.5, 1.0, 0.05)
METHODS = {"borders": "hrmedseg objects", "components": "connected components of core and border"}
FIGURE_CASES = 4


def prepare(data: Path, work: Path) -> None:
    """Write training images with numbered nuclei, make the dataset from them, and plan."""
    source = data / "labelled" / "dsb2018"
    lists = json.loads((data / "splits" / "dsb2018.json").read_text())
    images = {file.stem: file for file in (source / "images").iterdir()}
    for part, cases in (("train", lists["train"] + lists["valid"]), ("test", lists["test"])):
        suffix = "_0000" if part == "test" else ""
        for folder in ("images", "objects"):
            (work / part / folder).mkdir(parents=True, exist_ok=True)
        for case in cases:
            numbered, _ = ndimage.label(np.asarray(Image.open(source / "masks" / f"{case}.png")) > 0)
            Image.fromarray(numbered.astype(np.uint16)).save(work / part / "objects" / f"{case}.png")
            Image.open(images[case]).convert("RGB").save(work / part / "images" / f"{case}{suffix}.png")
    run(work, "hrmedseg", "dataset", work / "train/images", work / "train/objects", "-d", NUMBER, "-n", NAME,
        "--classes", "nucleus", "--instances", "--overwrite")  # fmt: skip
    run(work, "nnUNetv2_plan_and_preprocess", "-d", NUMBER, "-c", "2d", "-pl", "nnUNetPlannerHRMedSeg", "--no_pp",
        "-npfp", 1)  # fmt: skip
    split = [{"train": sorted(lists["train"]), "val": sorted(lists["valid"])}]
    (work / "nnUNet_preprocessed" / f"Dataset{NUMBER}_{NAME}" / "splits_final.json").write_text(json.dumps(split))


def train(work: Path, minutes: float) -> None:
    run(work, "hrmedseg", "compare", *MODEL, "--train", "--minutes", minutes, "-device", "cpu", "--no_ensembles",
        "-o", work / "comparison")  # fmt: skip


def score(work: Path) -> None:
    """Predict the test images and compare the objects with the reference."""
    labels, objects = work / "predictions", work / "objects"
    run(work, "nnUNetv2_predict", *MODEL, "-i", work / "test/images", "-o", labels, "-device", "cpu", "-npp", 1,
        "-nps", 1)  # fmt: skip
    shutil.rmtree(objects, ignore_errors=True)
    run(work, "hrmedseg", "objects", "-i", labels, "-o", objects)
    cases: dict[str, dict[str, dict[str, float]]] = {method: {} for method in METHODS}
    for file in sorted((work / "test/objects").iterdir()):
        truth = np.asarray(Image.open(file)).astype(np.int32)
        whole, _ = ndimage.label(np.asarray(Image.open(labels / file.name)) > 0)
        separated = np.asarray(Image.open(objects / f"{file.stem}.tif")).astype(np.int32)
        for method, found in (("borders", separated), ("components", whole)):
            cases[method][file.stem] = scores(truth, found)
    budget = next((work / "nnUNet_results").rglob("budget.json"))
    training = json.loads(budget.read_text())
    plans = json.loads((budget.parents[1] / "plans.json").read_text())["configurations"]
    content = {
        "date": datetime.date.today().isoformat(),
        "machine": processor_name(),
        "versions": {name: version(name) for name in ("torch", "nnunetv2")},
        "training": {
            "minutes": round(training["training_seconds"] / 60, 1),
            "image_steps": training["iterations"] * plans["2d"]["batch_size"],
        },
        "mean": {method: mean_scores(values) for method, values in cases.items()},
        "cases": cases,
    }
    write_atomically(RESULTS, (json.dumps(content, indent=1) + "\n").encode())
    for method, mean in content["mean"].items():
        print(f"{METHODS[method]}: " + ", ".join(f"{name} {value:.3f}" for name, value in mean.items()))
    draw(work, cases["borders"])


def scores(truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Return F1 and PQ at an IoU of 0.5, TP / (TP + FP + FN) at 0.5 (AP), and the score of the Data Science Bowl."""
    at_half = match_instances(truth, found, 0.5)
    # F1 = 2 TP / (2 TP + FP + FN), so TP / (TP + FP + FN) = F1 / (2 - F1)
    each = [f1 / (2 - f1) for f1 in (match_instances(truth, found, threshold)["F1"] for threshold in THRESHOLDS)]
    return {**at_half, "AP50": each[0], "DSB": float(np.mean(each))}


def mean_scores(cases: dict[str, dict[str, float]]) -> dict[str, float]:
    names = next(iter(cases.values()))
    return {name: float(np.nanmean([case[name] for case in cases.values()])) for name in names}


def draw(work: Path, cases: dict[str, dict[str, float]]) -> None:
    """Draw test images from the best to the worst, with the outlines of reference and predicted objects."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from skimage.segmentation import find_boundaries

    order = sorted(cases, key=lambda case: -cases[case]["DSB"])
    chosen = [order[index] for index in np.linspace(0, len(order) - 1, FIGURE_CASES).round().astype(int)]
    figure, axes = pyplot.subplots(2, FIGURE_CASES, figsize=(3 * FIGURE_CASES, 6.4), layout="constrained")
    for column, case in zip(axes.T, chosen, strict=True):
        image = np.asarray(Image.open(work / "test/images" / f"{case}_0000.png"))
        files = (work / "test/objects" / f"{case}.png", work / "objects" / f"{case}.tif")
        for axis, title, file in zip(column, ("reference", "predicted"), files, strict=True):
            numbered = np.asarray(Image.open(file)).astype(np.int32)
            shown = image.copy()
            shown[find_boundaries(numbered, mode="inner")] = (255, 176, 0)
            axis.imshow(shown)
            axis.set_title(f"{title}: {len(np.unique(numbered[numbered > 0]))} objects", fontsize=9)
            axis.axis("off")
        column[1].text(
            0.5, -0.06, f"F1 {cases[case]['F1']:.2f}, PQ {cases[case]['PQ']:.2f}",
            transform=column[1].transAxes, ha="center", fontsize=9,
        )  # fmt: skip
    figure.savefig(PICTURE, dpi=110, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)


def run(work: Path, command: str, *arguments: object) -> None:
    environment = {**os.environ, **{name: str(work / name) for name in FOLDERS}, "nnUNet_def_n_proc": "1"}
    environment |= {"nnUNet_n_proc_DA": "1"}
    for name in FOLDERS:
        (work / name).mkdir(parents=True, exist_ok=True)
    program = Path(sys.executable).parent / command
    subprocess.run([str(program), *map(str, arguments)], env=environment, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    for step, folders in (("prepare", ["data", "work"]), ("train", ["work"]), ("score", ["work"])):
        command = steps.add_parser(step)
        for folder in folders:
            command.add_argument(folder, type=lambda text: Path(text).absolute())
        if step == "train":
            command.add_argument("--minutes", type=float, default=30, help="length of the training (default: 30)")
    args = parser.parse_args()
    if args.step == "prepare":
        prepare(args.data, args.work)
    elif args.step == "train":
        train(args.work, args.minutes)
    else:
        score(args.work)


if __name__ == "__main__":
    main()
