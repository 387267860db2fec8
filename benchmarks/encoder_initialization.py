"""What an encoder to start from is worth: fine-tuning from scratch and from an encoder that never saw the task.

For each of four tasks (nuclei, polyps, skin lesions, organs on chest radiographs) an encoder is made by `hrmedseg
pretrain` from all labelled data sets but those of the task. Then nnUNetTrainerHRMedSeg is trained on the task for 1,000
image-steps, from random weights and from that encoder, with the same images, order and augmentation; Dice is
nnU-Net's own validation of the held-out cases.

    python benchmarks/encoder_initialization.py prepare  DATA WORK            raw data sets from folders of images
    python benchmarks/encoder_initialization.py pretrain WORK TASK            the encoder that never saw the task
    python benchmarks/encoder_initialization.py train    WORK TASK START SEED  START: scratch, encoder or a file
    python benchmarks/encoder_initialization.py table    WORK                 writes results/encoder_initialization.json
    python benchmarks/encoder_initialization.py bundle   WORK                 the encoder that travels with the package

DATA holds a folder for each data set, with `images` and `masks` (class indices) of the same names. Everything can be
repeated and goes on where it stopped; several tasks can run side by side, one thread each.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np

CANVAS = 512
IMAGE_STEPS, BATCH_SIZE, EPOCHS = 1000, 2, 10
PRETRAINING = ["--canvas", "256", "256", "--image_steps", "12000", "--batch_size", "8", "--lr", "4e-4"]
SEEDS = (0, 1)

# number, labels, and how many cases are held out
DATASETS = {
    "dsb2018": (901, {"background": 0, "nucleus": 1}, 100),
    "cvc_clinicdb": (902, {"background": 0, "polyp": 1}, 120),
    "isic2018": (903, {"background": 0, "lesion": 1}, 100),
    "jsrt": (904, {"background": 0, "lungs": 1, "heart": 2, "clavicles": 3}, 40),
    "kvasir": (905, {"background": 0, "polyp": 1}, 0),
    "mlua_dental": (906, {"background": 0, "caries": 1}, 0),
}
GREY = ("jsrt", "mlua_dental")
# task -> data sets that its encoder must not see
TASKS = {
    "dsb2018": ("dsb2018",),
    "cvc_clinicdb": ("cvc_clinicdb", "kvasir"),
    "isic2018": ("isic2018",),
    "jsrt": ("jsrt",),
}

LICENCES = (
    "dsb2018 (Data Science Bowl 2018, BBBC038): CC0; cvc_clinicdb (CVC-ClinicDB): research and education; isic2018 "
    "(ISIC 2018 task 1): CC0 and CC BY-NC; jsrt (JSRT): research; kvasir (Kvasir-SEG): research and education; "
    "mlua_dental (MLUA, DC1000): none stated"
)


def folder_name(dataset: str) -> str:
    return f"Dataset{DATASETS[dataset][0]}_{dataset}"


def split(dataset: str, cases: list[str]) -> tuple[list[str], list[str]]:
    """Cases to train on and cases held out. The polyps are frames of videos, in order: a run of frames is held out."""
    held_out = DATASETS[dataset][2]
    if dataset == "cvc_clinicdb":
        return cases[:-held_out], cases[-held_out:]
    order = np.random.default_rng(7).permutation(len(cases))
    held = sorted(order[:held_out].tolist())
    return [case for i, case in enumerate(cases) if i not in held], [cases[i] for i in held]


def prepare(data: Path, work: Path) -> None:
    from PIL import Image

    for name, (_, labels, held_out) in DATASETS.items():
        raw = work / "nnUNet_raw" / folder_name(name)
        if (raw / "dataset.json").is_file():
            continue
        for part in ("imagesTr", "labelsTr"):
            (raw / part).mkdir(parents=True, exist_ok=True)
        masks = {file.stem: file for file in (data / name / "masks").iterdir()}
        cases = []
        for file in sorted((data / name / "images").iterdir()):
            image = Image.open(file)
            image = image.convert("L" if name in GREY else "RGB")
            image.save(raw / "imagesTr" / f"{file.stem}_0000.png", compress_level=1)
            Image.open(masks[file.stem]).save(raw / "labelsTr" / f"{file.stem}.png")
            cases.append(file.stem)
        channels = {"0": "grey"} if name in GREY else {"0": "R", "1": "G", "2": "B"}
        description = {
            "channel_names": channels,
            "labels": labels,
            "numTraining": len(cases),
            "file_ending": ".png",
        }
        if held_out:
            training, validation = split(name, cases)
            (raw / "splits_final.json").write_text(json.dumps([{"train": training, "val": validation}]))
        (raw / "dataset.json").write_text(json.dumps(description))
        print(name, len(cases), flush=True)


def environment(work: Path) -> dict[str, str]:
    return {
        **os.environ,
        **{name: str(work / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")},
        "nnUNet_def_n_proc": "1",
        "nnUNet_n_proc_DA": "0",
        "nnUNet_compile": "f",
        "OMP_NUM_THREADS": "1",
    }


def pretrain(work: Path, datasets: list[str], output: str, extra: list[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "nnunet_hrmedseg.cli",
        "pretrain",
        "-d",
        *datasets,
        "-device",
        "cpu",
        "--workers",
        "0",
    ]
    command += [*PRETRAINING, "-o", str(work / "encoders" / output), *extra]
    subprocess.run(command, env=environment(work), check=True)


def bundle(work: Path, extra: list[str]) -> None:
    """From all data sets, but for the images that the demo holds out: their Dice must stay that of unseen images."""
    readme = Path(__file__).parent.parent / "nnunet_hrmedseg" / "demo" / "data" / "README.md"
    held_out = [line.split("|")[4].strip() for line in readme.read_text().splitlines() if line.startswith("| held_out")]
    whole = work / "nnUNet_raw" / folder_name("dsb2018")
    part = work / "nnUNet_raw" / "Dataset911_dsb2018_without_demo"
    if not (part / "dataset.json").is_file():
        for folder in ("imagesTr", "labelsTr"):
            (part / folder).mkdir(parents=True, exist_ok=True)
            for file in (whole / folder).iterdir():
                if not file.name.startswith(tuple(held_out)):
                    os.link(file, part / folder / file.name)
        description = json.loads((whole / "dataset.json").read_text())
        description["numTraining"] -= len(held_out)
        (part / "dataset.json").write_text(json.dumps(description))
    others = [folder_name(name) for name in DATASETS if name != "dsb2018"]
    said = ["--name", "six public data sets, supervised", "--data_licence", LICENCES]
    pretrain(work, [part.name, *others], "bundled", [*said, *extra])

    import torch

    from nnunet_hrmedseg.weights import BUNDLED, read_encoder, write_encoder

    made = read_encoder(work / "encoders" / "bundled" / "encoder.safetensors")
    card = {key: value for key, value in made.card.items() if key not in ("format", "sha256")}
    file = write_encoder(BUNDLED, made.state, card, torch.float16)
    print(f"{file.path}: {file.path.stat().st_size / 1e6:.1f} MB")


def train(work: Path, task: str, start: str, seed: int) -> None:
    """One training in this process, by nnU-Net's trainer; its validation goes to WORK/runs."""
    os.environ.update(environment(work))
    result = work / "runs" / f"{task}__{start.replace('/', '_')}__{seed}.json"
    if result.is_file():
        return
    import torch

    from nnunet_hrmedseg.trainers.trainer import nnUNetTrainerHRMedSeg

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    preprocessed = work / "nnUNet_preprocessed" / folder_name(task)
    if not (preprocessed / "nnUNetPlans.json").is_file():
        command = Path(sys.executable).parent / "nnUNetv2_plan_and_preprocess"
        number = str(DATASETS[task][0])
        options = ["-d", number, "-c", "2d", "--no_pp", "-npfp", "1"]
        subprocess.run([command, *options], env={**environment(work), "nnUNet_n_proc_DA": "1"}, check=True)
        raw = work / "nnUNet_raw" / folder_name(task)
        (preprocessed / "splits_final.json").write_bytes((raw / "splits_final.json").read_bytes())
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    description = json.loads((preprocessed / "dataset.json").read_text())

    from nnunet_hrmedseg.plans.overrides import hrmedseg_plans

    plans = hrmedseg_plans(plans, num_training_cases=description["numTraining"])
    plans["plans_name"] = f"{start.replace('/', '_')}_{seed}"
    plans["continue_training"] = False
    configuration = plans["configurations"]["2d"]
    configuration.update(patch_size=[CANVAS, CANVAS], batch_size=BATCH_SIZE)
    weights = {"scratch": "none", "encoder": str(work / "encoders" / task / "encoder.safetensors")}.get(start, start)
    configuration["encoder_weights"] = weights

    torch.manual_seed(seed)
    np.random.seed(seed)
    trainer = nnUNetTrainerHRMedSeg(plans, "2d", 0, description, torch.device("cpu"))
    trainer.num_epochs = EPOCHS
    trainer.num_iterations_per_epoch = IMAGE_STEPS // BATCH_SIZE // EPOCHS
    trainer.num_val_iterations_per_epoch = 2
    trainer.run_training()
    trainer.inference_allowed_mirroring_axes = None  # one forward pass per image instead of four
    trainer.perform_actual_validation()
    summary = json.loads((Path(trainer.output_folder) / "validation" / "summary.json").read_text())
    result.parent.mkdir(exist_ok=True)
    result.write_text(
        json.dumps(
            {
                "task": task,
                "start": start,
                "seed": seed,
                "dice": summary["foreground_mean"]["Dice"],
                "dice_per_class": {label: mean["Dice"] for label, mean in summary["mean"].items()},
                "encoder": trainer.encoder_record,
                "initial_lr": trainer.initial_lr,
            },
            indent=2,
        )
    )


def table(work: Path) -> None:
    import torch

    from nnunet_hrmedseg.pretraining.card import processor_name

    runs = [json.loads(file.read_text()) for file in sorted((work / "runs").glob("*.json"))]
    rows = {}
    for task in TASKS:
        rows[task] = {
            start: [run["dice"] for run in runs if run["task"] == task and run["start"] == start]
            for start in ("scratch", "encoder")
        }
    gains = {task: 100 * (np.mean(row["encoder"]) - np.mean(row["scratch"])) for task, row in rows.items()}
    for task, row in rows.items():
        print(task, *(f"{np.mean(row[start]):.4f} {np.round(row[start], 4)}" for start in row), f"{gains[task]:+.2f}")
    print(f"mean gain {np.mean(list(gains.values())):+.2f} Dice points")
    content = {
        "image_steps": IMAGE_STEPS,
        "canvas": CANVAS,
        "pretraining": " ".join(PRETRAINING),
        "machine": processor_name(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "date": datetime.date.today().isoformat(),
        "gain_in_dice_points": gains,
        "runs": runs,
    }
    file = Path(__file__).parent / "results" / "encoder_initialization.json"
    file.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    step = steps.add_parser("prepare")
    step.add_argument("data", type=Path)
    step.add_argument("work", type=Path)
    step = steps.add_parser("pretrain")
    step.add_argument("work", type=Path)
    step.add_argument("task", choices=TASKS)
    step = steps.add_parser("train")
    step.add_argument("work", type=Path)
    step.add_argument("task", choices=TASKS)
    step.add_argument("start")
    step.add_argument("seed", type=int)
    step = steps.add_parser("bundle")
    step.add_argument("work", type=Path)
    step = steps.add_parser("table")
    step.add_argument("work", type=Path)
    args, more = parser.parse_known_args()
    if args.step == "prepare":
        prepare(args.data, args.work.absolute())
    elif args.step == "pretrain":
        seen = [folder_name(name) for name in DATASETS if name not in TASKS[args.task]]
        pretrain(args.work.absolute(), seen, args.task, more)
    elif args.step == "bundle":
        bundle(args.work.absolute(), more)
    elif args.step == "train":
        train(args.work.absolute(), args.task, args.start, args.seed)
    else:
        table(args.work.absolute())
