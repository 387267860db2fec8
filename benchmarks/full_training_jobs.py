"""Jobs of benchmarks/full_training.py: train and test one row, or train one encoder, by the stock commands."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunet_hrmedseg.io.files import write_atomically
from nnunet_hrmedseg.io.machine import processor_name

try:
    from benchmarks.full_training_rows import DATASETS, ENCODERS, Row, find_row, make_split
except ModuleNotFoundError:  # as a script
    from full_training_rows import (  # type: ignore[import-not-found, no-redef]
        DATASETS,
        ENCODERS,
        Row,
        find_row,
        make_split,
    )

__all__ = ["EncoderJob", "RowError", "Training", "ensure_environment", "head", "running"]

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
FREE_GB = 3.0  # required to start a training
CHECK_CHECKPOINT = "import sys, torch; torch.load(sys.argv[1], map_location='cpu', weights_only=False)"
VERSIONS = "import json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in ('torch', 'nnunetv2')}))"

running: set[subprocess.Popen] = set()
preparing = threading.Lock()  # lanes share raw datasets and plans


class RowError(Exception):
    """A row that cannot be trained, with the reason."""


def environment_folder(work: Path, commit: str) -> Path:
    return work / "environments" / commit[:12]


def ensure_environment(work: Path, commit: str) -> Path:
    """Clone this repository at `commit` and install it into a new virtual environment, unless both exist."""
    folder = environment_folder(work, commit)
    if (folder / "complete").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    clone = folder / "clone"
    print(f"Creating the environment of commit {commit[:12]} in {folder}", flush=True)
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    subprocess.run(["git", "-C", clone, "checkout", "--quiet", commit], check=True)
    subprocess.run([getattr(sys, "_base_executable", sys.executable), "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "psutil", "segmentation_models_pytorch", clone], check=True
    )
    (folder / "complete").touch()
    return folder


def head() -> str:
    return subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()


def dataset_folder(name: str) -> str:
    return f"Dataset{DATASETS[name].number}_{name}"


def write_raw(data: Path, work: Path, name: str) -> None:
    """Write a raw dataset as PNG: training and validation cases to imagesTr, test cases to imagesTs and labelsTs.

    Raises:
        RowError: images or masks are missing.
        SystemExit: the split is missing or does not match the data.
    """
    from PIL import Image

    dataset, source, raw = DATASETS[name], data / "labelled" / name, work / "nnUNet_raw" / dataset_folder(name)
    if (raw / "dataset.json").is_file():
        return
    if not (source / "images").is_dir() or not (source / "masks").is_dir():
        raise RowError(f"the data is missing: {source} has no folders images and masks")
    files = {file.stem: file for file in sorted((source / "images").iterdir())}
    masks = {file.stem: file for file in (source / "masks").iterdir()}
    split = make_split(name, data, list(files))
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (raw / part).mkdir(parents=True, exist_ok=True)
    for cases, part in (([*split.train, *split.val], "Tr"), (split.test, "Ts")):
        for case in cases:
            if case not in masks:
                raise RowError(f"{source / 'masks'} has no mask of {case}")
            image = Image.open(files[case]).convert("L" if dataset.channels == ("gray",) else "RGB")
            image.save(raw / f"images{part}" / f"{case}_0000.png", compress_level=1)
            Image.open(masks[case]).save(raw / f"labels{part}" / f"{case}.png")
    (raw / "splits_final.json").write_text(json.dumps(split.folds()))
    description = {
        "channel_names": {str(index): channel for index, channel in enumerate(dataset.channels)},
        "labels": dataset.labels,
        "numTraining": len(split.train) + len(split.val),
        "file_ending": ".png",
    }
    (raw / "dataset.json").write_text(json.dumps(description))  # last: it marks a complete dataset


class Training:
    """One row: its folder, its settings at the time of its start, and its commands.

    commit: commit of a row that is started now; its environment must exist.
    """

    def __init__(self, row: Row, data: Path, work: Path, commit: str = ""):
        self.row, self.data, self.work, self.commit = row, data, work, commit
        self.folder = work / "rows" / row.name
        self.settings_file, self.result_file = self.folder / "row.json", self.folder / "result.json"
        self.output = (
            self.folder / "nnUNet_results" / dataset_folder(row.dataset) / f"{row.trainer}__{row.plans}__2d"
        ) / f"fold_{row.fold}"

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def encoder(self) -> Path:
        return encoder_file(self.work, self.row.start or "none")

    @property
    def done(self) -> bool:
        return self.result_file.is_file()

    def waits_for(self) -> str | None:
        """Return the row or encoder that must be finished first, if any."""
        if self.row.equal_seconds and not Training(find_row(self.row.equal_seconds), self.data, self.work).done:
            return self.row.equal_seconds
        if self.row.start and not self.encoder.is_file():
            return f"encoder {self.row.start}"
        return None

    def work_on(self) -> None:
        """Train, or continue, then predict the test cases and write result.json.

        Raises:
            RowError: something is missing, or a command failed.
        """
        settings = self.settings()
        folder = environment_folder(self.work, settings["commit"])
        if not (folder / "complete").is_file():
            raise RowError(
                f"it was started from commit {settings['commit'][:12]}, whose environment {folder} is missing; to "
                f"train it from the current commit, remove {self.folder}"
            )
        self.check_disk()
        with preparing:
            write_raw(self.data, self.work, self.row.dataset)
            self.plan()
        if not (self.output / "checkpoint_final.pth").is_file():
            continued = self.usable_checkpoint()
            self.run("nnUNetv2_train", *self.training_arguments(), *(["--c"] if continued else []))
        elif not (self.output / "validation" / "summary.json").is_file():
            self.run("nnUNetv2_train", *self.training_arguments(), "--val")
        self.predict_test()
        self.write_result()

    def settings(self) -> dict[str, Any]:
        """What the trainer reads: written once, when the row is started, and the same from then on."""
        if not self.settings_file.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            row = self.row
            settings = {**asdict(row), "settings": dict(row.settings), "commit": self.commit, "threads": 1}
            settings["started"] = datetime.date.today().isoformat()
            settings["processor_seconds"] = row.processor_minutes and 60 * row.processor_minutes
            if row.equal_seconds:
                finished = json.loads(
                    Training(find_row(row.equal_seconds), self.data, self.work).result_file.read_text()
                )
                settings["processor_seconds"] = row.factor * finished["curve"][-1]["processor_seconds"]
            write_atomically(self.settings_file, json.dumps(settings, indent=2).encode())
        return json.loads(self.settings_file.read_text())

    def check_disk(self) -> None:
        free = shutil.disk_usage(self.work).free / 1e9
        if free < FREE_GB:
            raise RowError(f"only {free:.1f} GB are free in {self.work}; {FREE_GB:g} GB are needed: make room")

    def plan(self) -> None:
        """Write the stock plans, and plans with the canvas and batch size of the row."""
        row, preprocessed = self.row, self.work / "nnUNet_preprocessed" / dataset_folder(self.row.dataset)
        number = DATASETS[row.dataset].number
        if not (preprocessed / "nnUNetPlans.json").is_file():
            self.run("nnUNetv2_plan_and_preprocess", "-d", number, "-c", "2d", "-npfp", 1, "-np", 1, "--no_pp")
        if row.canvas is None:
            if not (preprocessed / "gt_segmentations").is_dir() or not (preprocessed / "nnUNetPlans_2d").is_dir():
                self.run("nnUNetv2_preprocess", "-d", number, "-c", "2d", "-np", 1)
        elif not (preprocessed / f"{row.plans}.json").is_file():
            if not (preprocessed / "nnUNetHRMedSegPlans.json").is_file():
                self.run("nnUNetv2_plan_experiment", "-d", number, "-pl", "nnUNetPlannerHRMedSeg")
            plans = json.loads((preprocessed / "nnUNetHRMedSegPlans.json").read_text())
            plans["plans_name"] = row.plans
            named = isinstance(row.canvas, str)
            canvas = plans["configurations"][row.canvas]["patch_size"] if named else [row.canvas, row.canvas]
            plans["configurations"]["2d"]["patch_size"] = canvas
            plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["recompute"] = False
            if row.batch_size:
                plans["configurations"]["2d"]["batch_size"] = row.batch_size
            write_atomically(preprocessed / f"{row.plans}.json", json.dumps(plans, indent=4).encode())
        splits = self.work / "nnUNet_raw" / dataset_folder(row.dataset) / "splits_final.json"
        shutil.copyfile(splits, preprocessed / "splits_final.json")

    def training_arguments(self) -> list[Any]:
        row = self.row
        number = DATASETS[row.dataset].number
        return [number, "2d", row.fold, "-tr", row.trainer, "-p", row.plans, "-device", "cpu"]

    def usable_checkpoint(self) -> bool:
        """Return whether there is a checkpoint to continue from. A damaged one is replaced by the previous one."""
        latest, previous = self.output / "checkpoint_latest.pth", self.output / "checkpoint_previous.pth"
        for file in (latest, previous):
            if not file.is_file():
                continue
            python = environment_folder(self.work, self.settings()["commit"]) / "venv" / "bin" / "python"
            check = subprocess.run([python, "-c", CHECK_CHECKPOINT, file], capture_output=True, text=True)
            if check.returncode == 0:
                if file == previous:
                    shutil.copyfile(previous, latest)
                return True
            reason = (check.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"{self.row.name}: {file} is damaged ({reason}); using the previous one", flush=True)
            os.replace(file, file.with_suffix(".damaged"))
        return False

    def predict_test(self) -> None:
        raw = self.work / "nnUNet_raw" / dataset_folder(self.row.dataset)
        if self.row.fold or not any((raw / "imagesTs").iterdir()):
            return  # a recipe trial, or a dataset whose validation cases are its test cases
        row = self.row
        model = ["-d", DATASETS[row.dataset].number, "-c", "2d", "-f", row.fold, "-tr", row.trainer, "-p", row.plans]
        for weights in ("final", "averaged"):
            checkpoint, output = self.output / f"checkpoint_{weights}.pth", self.folder / f"test_{weights}"
            if not checkpoint.is_file() or (output / "summary.json").is_file():
                continue
            files = ["-i", raw / "imagesTs", "-o", output, "-chk", checkpoint.name]
            self.run("nnUNetv2_predict", *files, *model, "-device", "cpu", "-npp", 1, "-nps", 1)
            plans = ["-djfile", raw / "dataset.json", "-pfile", self.output.parent / "plans.json"]
            self.run("nnUNetv2_evaluate_folder", raw / "labelsTs", output, *plans)

    def run(self, command: str, *arguments: Any) -> None:
        """Run one of nnU-Net's commands from the row's environment, at low priority; its output is written to log.txt.

        Raises:
            RowError: it failed; the message has its last lines.
        """
        folder = environment_folder(self.work, self.settings()["commit"])
        environment = {
            **os.environ,
            **{name: str(self.work / name) for name in FOLDERS},
            "nnUNet_results": str(self.folder / "nnUNet_results"),
            "nnUNet_extTrainer": str(folder / "clone" / "benchmarks" / "trainers"),
            "nnUNet_def_n_proc": "1",
            "nnUNet_n_proc_DA": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "FULL_TRAINING_ROW": str(self.settings_file),
            "HRMEDSEG_ENCODER_WEIGHTS": str(self.encoder) if self.row.start else "none",
        }
        environment.pop("PYTHONPATH", None)
        call([folder / "venv" / "bin" / command, *arguments], environment, self.folder / "log.txt")

    def write_result(self) -> None:
        write_atomically(self.result_file, json.dumps(self.result(finished=True), indent=1).encode())

    def result(self, *, finished: bool) -> dict[str, Any]:
        """Return the recorded results of a row; for an unfinished row, the results so far."""
        settings, curve = self.settings(), self.output / "curve.jsonl"
        python = environment_folder(self.work, settings["commit"]) / "venv" / "bin" / "python"
        versions = subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True, check=True).stdout
        result = {
            "row": settings,
            "finished": finished,
            "date": datetime.date.today().isoformat(),
            "machine": processor_name(),
            "versions": json.loads(versions),
            "patch_size": self.patch_size(),
            "curve": [json.loads(line) for line in curve.read_text().splitlines()] if curve.is_file() else [],
        }
        if finished:
            summaries = {"validation": self.output / "validation" / "summary.json"}
            summaries |= {f"test_{w}": self.folder / f"test_{w}" / "summary.json" for w in ("final", "averaged")}
            result |= {name: dice_of(file) for name, file in summaries.items() if file.is_file()}
        return result

    def patch_size(self) -> list[int] | None:
        """Return the canvas, or the patch size of nnU-Net's plans, (height, width) in pixels; None before planning."""
        plans = self.work / "nnUNet_preprocessed" / dataset_folder(self.row.dataset) / f"{self.row.plans}.json"
        if not plans.is_file():
            return None
        return json.loads(plans.read_text())["configurations"]["2d"]["patch_size"]


def dice_of(summary: Path) -> dict[str, Any]:
    content = json.loads(summary.read_text())
    cases = {
        Path(case["prediction_file"]).stem: {label: m["Dice"] for label, m in case["metrics"].items()}
        for case in content["metric_per_case"]
    }
    return {"mean": {label: mean["Dice"] for label, mean in content["mean"].items()}, "cases": cases}


def encoder_file(work: Path, name: str) -> Path:
    return work / "encoders" / name / "encoder.safetensors"


class EncoderJob:
    """An encoder trained by `hrmedseg encoder pretrain`, which continues stopped runs."""

    def __init__(self, name: str, data: Path, work: Path, commit: str):
        self.encoder, self.data, self.work, self.commit = ENCODERS[name], data, work, commit
        self.name = f"encoder {name}"
        self.output = encoder_file(work, name).parent

    def waits_for(self) -> str | None:
        return None

    def work_on(self) -> None:
        """Train the encoder.

        Raises:
            RowError: something is missing, or a command failed.
        """
        with preparing:
            for dataset in self.encoder.datasets:
                write_raw(self.data, self.work, dataset)
        self.output.mkdir(parents=True, exist_ok=True)
        commit = self.output / "commit.txt"
        if not commit.is_file():
            commit.write_text(self.commit)
        folder = ensure_environment(self.work, commit.read_text())
        environment = {**os.environ, **{name: str(self.work / name) for name in FOLDERS}, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        datasets = [dataset_folder(dataset) for dataset in self.encoder.datasets]
        steps = ["--image_steps", self.encoder.image_steps, *self.encoder.options, "-device", "cpu", "--workers", 1]
        arguments = ["-d", *datasets, *steps, "--name", self.encoder.name, "-o", self.output / "run"]
        command = [folder / "venv" / "bin" / "hrmedseg", "encoder", "pretrain", *arguments]
        call(command, environment, self.output / "log.txt")
        for file in ("encoder.json", "encoder.safetensors"):
            shutil.copyfile(self.output / "run" / file, self.output / file)


def call(command: list[Any], environment: dict[str, str], log: Path) -> None:
    def low_priority() -> None:
        os.setsid()
        try:  # Linux schedules sessions before processes: nice alone does nothing between sessions
            Path("/proc/self/autogroup").write_text("10")
        except OSError:
            pass
        os.nice(19)

    with log.open("ab") as file:
        process = subprocess.Popen(
            list(map(str, command)),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            preexec_fn=low_priority,
        )
        running.add(process)
        try:
            status = process.wait()
        finally:
            running.discard(process)
    if status:
        last = log.read_text(errors="replace").replace("\r", "\n").strip().splitlines()[-15:]
        raise RowError(f"{Path(str(command[0])).name} ended with status {status}:\n  " + "\n  ".join(last))
