"""Measure the gain by encoders: fine-tuning from scratch and from an encoder that was made without images of the task.

There are four tasks: nuclei, polyps, skin lesions, and organs on chest radiographs. Encoders are made by `hrmedseg
encoder pretrain` from some of the labeled datasets, and each task starts from an encoder without any image of its kind.
Then nnUNetTrainerHRMedSeg is trained on the task for 1,000 image-steps, from random weights and from this encoder, with
the same images, order and augmentation. Dice is that of nnU-Net's validation on the held-out cases.

    python benchmarks/encoder_initialization.py prepare  DATA WORK            raw datasets from folders of images
    python benchmarks/encoder_initialization.py pretrain WORK ENCODER         an encoder, supervised on datasets
    python benchmarks/encoder_initialization.py teacher  WORK ENCODER         a ResEnc nnU-Net, trained on the same data
    python benchmarks/encoder_initialization.py distill  DATA WORK ENCODER    an encoder, distilled from its features
    python benchmarks/encoder_initialization.py distill_logits DATA WORK ENCODER    ... from its predictions
    python benchmarks/encoder_initialization.py train    WORK TASK START SEED START: scratch, one of STARTS, a file
    python benchmarks/encoder_initialization_table.py    WORK                 writes results/encoder_initialization.json
    python benchmarks/encoder_initialization.py bundle   WORK                 the encoder in the package

The last step uses the results of `teacher` and `distill` for the ENCODER `bundled`, made from all images except those
that the demo holds out.

Larger teachers and longer distillations are stored separately. Teachers have --side, --width, --epochs and
--iterations, given to `teacher` and, as --teacher_side and so on, to `distill`. `distill` accepts the options of
`hrmedseg encoder distill` (--canvas 512 512 --epochs 60) and --suffix, a name for its result: the encoder is then the
START `distilled_SUFFIX`. `train` accepts --canvas (512 or 1024), --encoder_lr, the learning rate of an encoder that
is not random, and --precision. bfloat16 and float16 are autocast with a gradient scaler, as nnU-Net trains on a GPU;
most CPUs compute float16 at a fifth of the speed. For example, for an encoder at 512 x 512:

    teacher WORK ENCODER --side 512 --width 1 --epochs 50 --iterations 100
    distill DATA WORK ENCODER --teacher_side 512 --teacher_width 1 --teacher_epochs 50 --teacher_iterations 100
            --suffix large --canvas 512 512 --epochs 40
    train   WORK TASK distilled_large SEED --canvas 1024        and distilled, scratch
    bundle  WORK --suffix large

`DATA/labelled` contains a folder per dataset, with `images` and `masks` (class indices) of the same names, and
`DATA/unlabelled` contains folders of images. All steps can be repeated and continue where they stopped; several tasks
can run in parallel, with one thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

try:
    from benchmarks.encoder_initialization_data import (
        ENCODERS,
        LICENSES,
        TASKS,
        UNLABELED,
        environment,
        folder_name,
        prepare,
        stock_plans,
    )
    from benchmarks.encoder_initialization_teacher import Teacher, train_teacher
except ModuleNotFoundError:  # as a script
    from encoder_initialization_data import (  # type: ignore[import-not-found, no-redef]
        ENCODERS,
        LICENSES,
        TASKS,
        UNLABELED,
        environment,
        folder_name,
        prepare,
        stock_plans,
    )
    from encoder_initialization_teacher import Teacher, train_teacher  # type: ignore[import-not-found, no-redef]

CANVAS = 512
IMAGE_STEPS, BATCH_SIZE, EPOCHS = 1000, 2, 10
PRETRAINING = "--canvas 256 256 --zoom 0.25 3 --image_steps 16000 --batch_size 8 --lr 4e-4".split()
DISTILLATION = "--canvas 256 256 --epochs 8 --batch_size 8 --val_images 32".split()
SEEDS = range(4)
# method -> suffix of the encoder's folder
STARTS = {"encoder": "", "distilled": "_distilled", "logits": "_logits"}


def hrmedseg(work: Path, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", "nnunet_hrmedseg.cli", *map(str, arguments), "-device", "cpu", "--workers", "0"]
    subprocess.run(command, env=environment(work), check=True)


def pretrain(work: Path, datasets: Sequence[str], output: str, extra: list[str]) -> None:
    hrmedseg(work, "pretrain", "-d", *datasets, *PRETRAINING, "-o", work / "encoders" / output, *extra)


def distill(data: Path, work: Path, encoder: str, start: str, settings: Teacher, suffix: str, extra: list[str]) -> None:
    labeled = [folder_name(name) for name in ENCODERS[encoder]]
    unlabeled = [data / "unlabelled" / name for name in UNLABELED[encoder]]
    output = encoder_folder(work, encoder, start, suffix)
    files = ["--cache", work / "embeddings" / f"{encoder}{suffix and '_' + suffix}", "-o", output]
    target = ["--target", "logits" if start == "logits" else "features"]
    card = ["--name", f"{encoder}: distilled from an nnU-Net trained on labeled datasets", "--data_license", LICENSES]
    images = ["--images", *labeled, *unlabeled]
    made_by = ["distill", "--teacher", settings.results(work, encoder), *target]
    hrmedseg(work, *made_by, *images, *files, *card, *DISTILLATION, *extra)


def encoder_folder(work: Path, encoder: str, start: str, suffix: str = "") -> Path:
    """Return the folder of an encoder. `start` is a key of STARTS; `suffix` distinguishes encoders of one kind."""
    return work / "encoders" / f"{encoder}{STARTS[start]}{suffix and '_' + suffix}"


def bundle(work: Path, suffix: str) -> None:
    """Write the encoder distilled from all images into the package, in half precision."""
    from nnunet_hrmedseg.weights import BUNDLED, load_encoder, write_encoder

    made = load_encoder(encoder_folder(work, "bundled", "distilled", suffix) / "encoder.safetensors")
    card = {key: value for key, value in made.card.items() if key not in ("format", "sha256")}
    card["name"] = "six public datasets and unlabeled images, distilled from a ResEnc nnU-Net trained on the six"
    card.pop("licences", None)  # spelling in cards of earlier versions
    card["licenses"] = made.licenses | {"teacher": "trained on the labeled datasets among the images"}
    weights = Path(__file__).parent.parent / "nnunet_hrmedseg" / "weights"  # in this clone
    file = write_encoder(weights / BUNDLED.name, made.state, card, torch.float16)
    print(f"{file.path}: {file.path.stat().st_size / 1e6:.1f} MB")


def train(
    work: Path, task: str, start: str, seed: int, canvas: int, precision: str, encoder_lr: float | None = None
) -> None:
    """Train once in this process by nnU-Net's trainer, and write the result of the validation to WORK/runs."""
    os.environ.update(environment(work))
    name = start.replace("/", "_") + (f"_canvas{canvas}" if canvas != CANVAS else "")
    name += "" if precision == "float32" else f"_{precision}"
    name += "" if encoder_lr is None else f"_lr{encoder_lr:g}"
    result = work / "runs" / f"{task}__{name}__{seed}.json"
    if result.is_file():
        return
    from nnunet_hrmedseg.trainers.hrmedseg import nnUNetTrainerHRMedSeg

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    plans, description = stock_plans(work, folder_name(task), "nnUNetPlans", "--no_pp")

    from nnunet_hrmedseg.plans.overrides import hrmedseg_plans

    plans = hrmedseg_plans(plans, num_training_cases=description["numTraining"])
    plans["plans_name"] = f"{name}_{seed}"
    configuration = plans["configurations"]["2d"]
    configuration.update(patch_size=[canvas, canvas], batch_size=BATCH_SIZE)
    kind, _, suffix = start.partition("_")
    if kind in STARTS:
        folder = encoder_folder(work, TASKS[task], kind, suffix)
        configuration["encoder_weights"] = str(folder / "encoder.safetensors")
    else:
        configuration["encoder_weights"] = "none" if start == "scratch" else start

    torch.manual_seed(seed)
    np.random.seed(seed)
    trainer = nnUNetTrainerHRMedSeg(plans, "2d", 0, description, torch.device("cpu"))
    if precision != "float32":
        train_in_mixed_precision(trainer, getattr(torch, precision))
    trainer.num_epochs = EPOCHS
    trainer.encoder_lr = encoder_lr
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
                "canvas": canvas,
                "precision": precision,
                "encoder_lr": encoder_lr,
                "dice": summary["foreground_mean"]["Dice"],
                "dice_per_class": {label: mean["Dice"] for label, mean in summary["mean"].items()},
                "dice_per_case": {
                    Path(case["reference_file"]).name: {label: m["Dice"] for label, m in case["metrics"].items()}
                    for case in summary["metric_per_case"]
                },
                "encoder": trainer.encoder_record,
                "initial_lr": trainer.initial_lr,
            },
            indent=2,
        )
    )


def train_in_mixed_precision(trainer: Any, dtype: torch.dtype) -> None:
    """Let a trainer on the CPU do what nnU-Net does on CUDA: autocast in training steps, and scaled gradients."""
    step = trainer.train_step

    def train_step(batch: dict[str, Any]) -> dict[str, Any]:
        forward = trainer.network.forward

        def autocast_forward(image: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype):
                return forward(image)

        trainer.network.forward = autocast_forward
        try:
            return step(batch)
        finally:
            del trainer.network.forward

    trainer.train_step = train_step
    trainer.grad_scaler = torch.amp.GradScaler("cpu")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    positional = {
        "prepare": ["data", "work"],
        "pretrain": ["work", "encoder"],
        "teacher": ["work", "encoder"],
        "distill": ["data", "work", "encoder"],
        "distill_logits": ["data", "work", "encoder"],
        "train": ["work", "task", "start", "seed"],
        "bundle": ["work"],
    }
    kinds = {
        "data": {"type": lambda text: Path(text).absolute()},
        "work": {"type": lambda text: Path(text).absolute()},
        "encoder": {"choices": ENCODERS},
        "task": {"choices": TASKS},
        "start": {},
        "seed": {"type": int},
    }
    for name, arguments in positional.items():
        step = steps.add_parser(name, allow_abbrev=False)
        for argument in arguments:
            step.add_argument(argument, **kinds[argument])
    # abbreviations of options are disabled: --epochs of `distill` belongs to the student
    for name, prefix in (("teacher", ""), ("distill", "teacher_"), ("distill_logits", "teacher_")):
        for field in fields(Teacher):
            option = f"--{prefix}{field.name}"
            steps.choices[name].add_argument(option, dest=field.name, type=type(field.default), default=field.default)
    for name in ("distill", "distill_logits", "bundle"):
        steps.choices[name].add_argument("--suffix", default="")
    steps.choices["train"].add_argument("--canvas", type=int, default=CANVAS)
    steps.choices["train"].add_argument("--precision", choices=("float32", "bfloat16", "float16"), default="float32")
    steps.choices["train"].add_argument("--encoder_lr", type=float)
    args, more = parser.parse_known_args()
    if more and args.step not in ("pretrain", "distill", "distill_logits"):
        parser.error(f"unknown options: {' '.join(more)}")
    if args.step in ("teacher", "distill", "distill_logits"):
        settings = Teacher(**{field.name: getattr(args, field.name) for field in fields(Teacher)})
    if args.step == "pretrain":
        pretrain(args.work, [folder_name(name) for name in ENCODERS[args.encoder]], args.encoder, more)
    elif args.step == "teacher":
        train_teacher(args.work, args.encoder, settings)
    elif args.step in ("distill", "distill_logits"):
        start = "logits" if args.step == "distill_logits" else "distilled"
        distill(args.data, args.work, args.encoder, start, settings, args.suffix, more)
    elif args.step == "train":
        train(args.work, args.task, args.start, args.seed, args.canvas, args.precision, args.encoder_lr)
    elif args.step == "bundle":
        bundle(args.work, args.suffix)
    else:
        prepare(args.data, args.work)
