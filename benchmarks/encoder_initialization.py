"""What an encoder to start from is worth: fine-tuning from scratch and from an encoder that never saw the task.

Four tasks: nuclei, polyps, skin lesions, organs on chest radiographs. Encoders are made by `hrmedseg pretrain` from
some of the labelled datasets, and a task starts from one that was made without any image of its kind. Then
nnUNetTrainerHRMedSeg is trained on the task for 1,000 image-steps, from random weights and from that encoder, with the
same images, order and augmentation; Dice is nnU-Net's own validation of the held-out cases.

    python benchmarks/encoder_initialization.py prepare  DATA WORK            raw datasets from folders of images
    python benchmarks/encoder_initialization.py pretrain WORK ENCODER         an encoder, supervised on datasets
    python benchmarks/encoder_initialization.py teacher  WORK ENCODER         a ResEnc nnU-Net, trained on the same
    python benchmarks/encoder_initialization.py distill  DATA WORK ENCODER    an encoder, distilled from its features
    python benchmarks/encoder_initialization.py distill_logits DATA WORK ENCODER    ... from what it predicts
    python benchmarks/encoder_initialization.py train    WORK TASK START SEED START: scratch, one of STARTS, a file
    python benchmarks/encoder_initialization_table.py    WORK                 writes results/encoder_initialization.json
    python benchmarks/encoder_initialization.py bundle   WORK                 the encoder that travels with the package

The last step takes what `teacher` and `distill` made for the ENCODER `bundled`: from everything but the images that the
demo holds out.

Larger teachers and longer distillations stand beside the first ones. Teachers have --side, --width, --epochs and
--iterations, given to `teacher` and, as --teacher_side and so on, to `distill`. `distill` takes the options of
`hrmedseg distill` (--canvas 512 512 --epochs 60) and --suffix, a word that names its result: the encoder is then the
START `distilled_SUFFIX`. `train` takes --canvas (512 or 1024). So for an encoder of 512 x 512:

    teacher WORK ENCODER --side 512 --width 1 --epochs 50 --iterations 100
    distill DATA WORK ENCODER --teacher_side 512 --teacher_width 1 --teacher_epochs 50 --teacher_iterations 100
            --suffix large --canvas 512 512 --epochs 40
    train   WORK TASK distilled_large SEED --canvas 1024        and distilled, scratch
    bundle  WORK --suffix large

DATA/labelled holds a folder for each dataset, with `images` and `masks` (class indices) of the same names, and
DATA/unlabelled folders of images. Everything can be repeated and goes on where it stopped; several tasks can run side
by side, one thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

CANVAS = 512
IMAGE_STEPS, BATCH_SIZE, EPOCHS = 1000, 2, 10
PRETRAINING = "--canvas 256 256 --zoom 0.25 3 --image_steps 16000 --batch_size 8 --lr 4e-4".split()
TEACHER_BATCH_SIZE = 4
DISTILLATION = "--canvas 256 256 --epochs 8 --batch_size 8 --val_images 32".split()
SEEDS = (0, 1)
# how an encoder was made -> what its folder is called after the encoder's name
STARTS = {"encoder": "", "distilled": "_distilled", "logits": "_logits"}

# number, labels, and how many cases are held out
DATASETS = {
    "dsb2018": (901, {"background": 0, "nucleus": 1}, 100),
    "cvc_clinicdb": (902, {"background": 0, "polyp": 1}, 120),
    "isic2018": (903, {"background": 0, "lesion": 1}, 100),
    "jsrt": (904, {"background": 0, "lungs": 1, "heart": 2, "clavicles": 3}, 40),
    "kvasir": (905, {"background": 0, "polyp": 1}, 0),
    "mlua_dental": (906, {"background": 0, "caries": 1}, 0),
    "dsb2018_without_demo": (911, {"background": 0, "nucleus": 1}, 0),  # made from the first
}
GREY = ("jsrt", "mlua_dental")
# encoder -> what it is made from
ENCODERS = {
    "nuclei_skin_teeth": ("dsb2018", "isic2018", "mlua_dental"),
    "all_but_nuclei": ("isic2018", "cvc_clinicdb", "kvasir", "jsrt", "mlua_dental"),
    "all_but_skin": ("dsb2018", "cvc_clinicdb", "kvasir", "jsrt", "mlua_dental"),
    "bundled": ("dsb2018_without_demo", "isic2018", "cvc_clinicdb", "kvasir", "jsrt", "mlua_dental"),
}
# task -> the encoder that knows nothing of it
TASKS = {
    "dsb2018": "all_but_nuclei",
    "cvc_clinicdb": "nuclei_skin_teeth",
    "isic2018": "all_but_skin",
    "jsrt": "nuclei_skin_teeth",
}
# for distillation, besides the images of those datasets; of no kind that a task of theirs is of
UNLABELLED = {
    "nuclei_skin_teeth": ("bccd", "fuseg", "idrid_train54", "imagenet_sample", "isic2018_512", "selfexsr_hr", "vnc_em"),
    "all_but_nuclei": ("figure1_covid_cxr", "fuseg", "idrid_train54", "imagenet_sample", "isic2018_512", "selfexsr_hr"),
    "all_but_skin": ("bccd", "figure1_covid_cxr", "idrid_train54", "imagenet_sample", "selfexsr_hr", "vnc_em"),
}
UNLABELLED["bundled"] = tuple(sorted({name for names in UNLABELLED.values() for name in names}))

LICENSES = (
    "dsb2018 (Data Science Bowl 2018, BBBC038): CC0; cvc_clinicdb (CVC-ClinicDB): research and education; isic2018 "
    "(ISIC 2018 task 1): CC0 and CC BY-NC; jsrt (JSRT): research; kvasir (Kvasir-SEG): research and education; "
    "mlua_dental (MLUA, DC1000): none stated; without labels: images of imagenet-sample-images, SelfExSR (Urban100), "
    "ISIC 2018, wound-segmentation (FUSeg), IDRiD, BCCD, Figure 1 COVID chest radiographs, groundtruth-drosophila-vnc: "
    "mixed, for research"
)


@dataclass(frozen=True)
class Teacher:
    """A ResEnc M nnU-Net.

    Attributes:
        side: height and width of its images in pixels.
        width: factor on its numbers of channels.
        epochs: number of epochs.
        iterations: batches of an epoch.
    """

    side: int = 256
    width: float = 0.5
    epochs: int = 10
    iterations: int = 60

    def dataset(self, encoder: str) -> str:
        number = 920 + 10 * (self.side // 256 - 1) + list(ENCODERS).index(encoder)
        return f"Dataset{number}_{encoder}"

    @property
    def plans_name(self) -> str:
        name = "nnUNetResEncUNetMPlans"
        if self == Teacher(self.side):
            return name
        return f"{name}_width{self.width:g}_{self.epochs}x{self.iterations}"

    def results(self, work: Path, encoder: str) -> Path:
        return work / "nnUNet_results" / self.dataset(encoder) / f"nnUNetTrainer__{self.plans_name}__2d"


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
        if name == "dsb2018_without_demo":
            leave_out_demo(work)
            continue
        for part in ("imagesTr", "labelsTr"):
            (raw / part).mkdir(parents=True, exist_ok=True)
        masks = {file.stem: file for file in (data / "labelled" / name / "masks").iterdir()}
        cases = []
        for file in sorted((data / "labelled" / name / "images").iterdir()):
            image = Image.open(file)
            image = image.convert("L" if name in GREY else "RGB")
            image.save(raw / "imagesTr" / f"{file.stem}_0000.png", compress_level=1)
            Image.open(masks[file.stem]).save(raw / "labelsTr" / f"{file.stem}.png")
            cases.append(file.stem)
        if held_out:
            training, validation = split(name, cases)
            (raw / "splits_final.json").write_text(json.dumps([{"train": training, "val": validation}]))
        write_dataset_json(raw, labels, len(cases), grey=name in GREY)
        print(name, len(cases), flush=True)


def leave_out_demo(work: Path) -> None:
    """dsb2018 without the images that the demo holds out: their Dice must stay that of unseen images."""
    readme = Path(__file__).parent.parent / "nnunet_hrmedseg" / "demo" / "data" / "README.md"
    held_out = [line.split("|")[4].strip() for line in readme.read_text().splitlines() if line.startswith("| held_out")]
    whole, part = (work / "nnUNet_raw" / folder_name(name) for name in ("dsb2018", "dsb2018_without_demo"))
    for folder in ("imagesTr", "labelsTr"):
        (part / folder).mkdir(parents=True, exist_ok=True)
        for file in (whole / folder).iterdir():
            if not file.name.startswith(tuple(held_out)):
                os.link(file, part / folder / file.name)
    write_dataset_json(part, DATASETS["dsb2018"][1], len(list((part / "labelsTr").iterdir())))


def write_dataset_json(raw: Path, labels: dict[str, int], cases: int, grey: bool = False) -> None:
    channels = {"0": "grey"} if grey else {"0": "R", "1": "G", "2": "B"}
    description = {"channel_names": channels, "labels": labels, "numTraining": cases, "file_ending": ".png"}
    (raw / "dataset.json").write_text(json.dumps(description))


def environment(work: Path) -> dict[str, str]:
    return {
        **os.environ,
        **{name: str(work / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")},
        "nnUNet_def_n_proc": "1",
        "nnUNet_n_proc_DA": "0",
        "nnUNet_compile": "f",
        "OMP_NUM_THREADS": "1",
    }


def stock_plans(work: Path, folder: str, name: str, *options: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A dataset's plans, made where they are missing, for a trainer of this process; and its dataset.json."""
    preprocessed = work / "nnUNet_preprocessed" / folder
    if not (preprocessed / f"{name}.json").is_file():
        command = Path(sys.executable).parent / "nnUNetv2_plan_and_preprocess"
        number = folder.removeprefix("Dataset").partition("_")[0]
        shared = ["-d", number, "-c", "2d", "-npfp", "1"]
        subprocess.run([command, *shared, *options], env={**environment(work), "nnUNet_n_proc_DA": "1"}, check=True)
        splits = work / "nnUNet_raw" / folder / "splits_final.json"
        if splits.is_file():
            (preprocessed / "splits_final.json").write_bytes(splits.read_bytes())
    plans = json.loads((preprocessed / f"{name}.json").read_text())
    plans["continue_training"] = False
    return plans, json.loads((preprocessed / "dataset.json").read_text())


def hrmedseg(work: Path, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", "nnunet_hrmedseg.cli", *map(str, arguments), "-device", "cpu", "--workers", "0"]
    subprocess.run(command, env=environment(work), check=True)


def pretrain(work: Path, datasets: Sequence[str], output: str, extra: list[str]) -> None:
    hrmedseg(work, "pretrain", "-d", *datasets, *PRETRAINING, "-o", work / "encoders" / output, *extra)


def prepare_teacher(work: Path, encoder: str, settings: Teacher) -> None:
    """One dataset of all that an encoder is made from: RGB, as large as the canvas, every class its own."""
    from PIL import Image

    raw = work / "nnUNet_raw" / settings.dataset(encoder)
    if (raw / "dataset.json").is_file():
        return
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True, exist_ok=True)
    size, labels, cases = (settings.side, settings.side), {"background": 0}, 0
    for name in ENCODERS[encoder]:
        source, first = work / "nnUNet_raw" / folder_name(name), len(labels) - 1
        shared = {label: labels[label] for label in DATASETS[name][1] if label in labels}  # polyps are of two datasets
        labels.update({label: first + value for label, value in DATASETS[name][1].items() if label not in shared})
        values = np.array([labels[label] for label in DATASETS[name][1]], np.uint8)
        for file in sorted((source / "labelsTr").iterdir()):
            image = Image.open(source / "imagesTr" / f"{file.stem}_0000.png").convert("RGB")
            image.resize(size, Image.Resampling.BOX).save(raw / "imagesTr" / f"{name}_{file.stem}_0000.png")
            mask = Image.fromarray(values[np.array(Image.open(file))]).resize(size, Image.Resampling.NEAREST)
            mask.save(raw / "labelsTr" / f"{name}_{file.name}")
            cases += 1
    write_dataset_json(raw, labels, cases)


def teacher(work: Path, encoder: str, settings: Teacher) -> None:
    """Train a ResEnc M nnU-Net with nnU-Net's own trainer; half the width is for two CPU cores."""
    os.environ.update(environment(work))
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.set_num_threads(1)
    prepare_teacher(work, encoder, settings)
    options = ["-pl", "nnUNetPlannerResEncM", "-np", "1"]
    plans, description = stock_plans(work, settings.dataset(encoder), "nnUNetResEncUNetMPlans", *options)
    plans["plans_name"] = settings.plans_name
    configuration = plans["configurations"]["2d"]
    configuration.update(batch_size=TEACHER_BATCH_SIZE, patch_size=[settings.side, settings.side])
    network = configuration["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [int(features * settings.width) for features in network["features_per_stage"]]
    torch.manual_seed(0)
    np.random.seed(0)
    trainer = nnUNetTrainer(plans, "2d", 0, description, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch = settings.epochs, settings.iterations
    trainer.num_val_iterations_per_epoch = 10
    trainer.save_every = 1
    if (Path(trainer.output_folder) / "checkpoint_final.pth").is_file():
        return
    latest = Path(trainer.output_folder) / "checkpoint_latest.pth"
    if latest.is_file():
        trainer.load_checkpoint(str(latest))
    trainer.run_training()


def distill(data: Path, work: Path, encoder: str, start: str, settings: Teacher, suffix: str, extra: list[str]) -> None:
    labelled = [folder_name(name) for name in ENCODERS[encoder]]
    unlabeled = [data / "unlabelled" / name for name in UNLABELLED[encoder]]
    output = encoder_folder(work, encoder, start, suffix)
    files = ["--cache", work / "embeddings" / f"{encoder}{suffix and '_' + suffix}", "-o", output]
    target = ["--target", "logits" if start == "logits" else "features"]
    card = ["--name", f"{encoder}: distilled from an nnU-Net trained on labelled datasets", "--data_license", LICENSES]
    images = ["--images", *labelled, *unlabeled]
    made_by = ["distill", "--teacher", settings.results(work, encoder), *target]
    hrmedseg(work, *made_by, *images, *files, *card, *DISTILLATION, *extra)


def encoder_folder(work: Path, encoder: str, start: str, suffix: str = "") -> Path:
    """The folder of an encoder. `start` is a row of STARTS; `suffix` tells several of one kind apart."""
    return work / "encoders" / f"{encoder}{STARTS[start]}{suffix and '_' + suffix}"


def bundle(work: Path, suffix: str) -> None:
    """The encoder distilled from everything becomes the package's own, in half precision."""
    import torch

    from nnunet_hrmedseg.weights import BUNDLED, load_encoder, write_encoder

    made = load_encoder(encoder_folder(work, "bundled", "distilled", suffix) / "encoder.safetensors")
    card = {key: value for key, value in made.card.items() if key not in ("format", "sha256")}
    card["name"] = "six public datasets and unlabeled images, distilled from a ResEnc nnU-Net trained on the six"
    card.pop("licences", None)  # the name in cards of earlier versions
    card["licenses"] = made.licenses | {"teacher": "trained on the labelled datasets among the images"}
    weights = Path(__file__).parent.parent / "nnunet_hrmedseg" / "weights"  # of this clone, wherever it is installed
    file = write_encoder(weights / BUNDLED.name, made.state, card, torch.float16)
    print(f"{file.path}: {file.path.stat().st_size / 1e6:.1f} MB")


def train(work: Path, task: str, start: str, seed: int, canvas: int) -> None:
    """One training in this process, by nnU-Net's trainer; its validation goes to WORK/runs."""
    os.environ.update(environment(work))
    name = start.replace("/", "_") + (f"_canvas{canvas}" if canvas != CANVAS else "")
    result = work / "runs" / f"{task}__{name}__{seed}.json"
    if result.is_file():
        return
    import torch

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
                "canvas": canvas,
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    takes = {
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
    for name, arguments in takes.items():
        step = steps.add_parser(name, allow_abbrev=False)
        for argument in arguments:
            step.add_argument(argument, **kinds[argument])
    # abbreviations of options are switched off: --epochs of `distill` is the student's
    for name, prefix in (("teacher", ""), ("distill", "teacher_"), ("distill_logits", "teacher_")):
        for field in fields(Teacher):
            option = f"--{prefix}{field.name}"
            steps.choices[name].add_argument(option, dest=field.name, type=type(field.default), default=field.default)
    for name in ("distill", "distill_logits", "bundle"):
        steps.choices[name].add_argument("--suffix", default="")
    steps.choices["train"].add_argument("--canvas", type=int, default=CANVAS)
    args, more = parser.parse_known_args()
    if more and args.step not in ("pretrain", "distill", "distill_logits"):
        parser.error(f"unknown options: {' '.join(more)}")
    if args.step in ("teacher", "distill", "distill_logits"):
        settings = Teacher(**{field.name: getattr(args, field.name) for field in fields(Teacher)})
    if args.step == "pretrain":
        pretrain(args.work, [folder_name(name) for name in ENCODERS[args.encoder]], args.encoder, more)
    elif args.step == "teacher":
        teacher(args.work, args.encoder, settings)
    elif args.step in ("distill", "distill_logits"):
        start = "logits" if args.step == "distill_logits" else "distilled"
        distill(args.data, args.work, args.encoder, start, settings, args.suffix, more)
    elif args.step == "train":
        train(args.work, args.task, args.start, args.seed, args.canvas)
    elif args.step == "bundle":
        bundle(args.work, args.suffix)
    else:
        prepare(args.data, args.work)
