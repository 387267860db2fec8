"""Train in the papers' setting on a GPU: CVC-ClinicDB and DSB-2018, canvas 1024, batch size 16, 200 passes.

    python benchmarks/papers_setting.py IMAGES SPLITS WORK --name cvc_clinicdb --trainer nnUNetTrainerHRMedSeg

IMAGES contains the folders `images` (RGB) and `masks` (values 0 and 1, or 0 and 255) with the same file names. SPLITS
is a JSON file with the lists "train", "valid" and "test" of names without ending. All models are trained by
nnUNetv2_train.

Each call runs for --minutes (default: 9) and continues where the previous call ended, for machines that are available
only for minutes. Exit status 0: finished, the result is in -o; 3: call again. Between calls, only WORK/nnUNet_results
and WORK/pieces.json must be kept; everything else is recreated if missing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_hrmedseg.errors import DataError, HRMedSegError
from nnunet_hrmedseg.io.files import read_json, write_atomically
from nnunet_hrmedseg.io.machine import processor_name, usable_cores

HERE = Path(__file__).parent
TRAINERS = (
    "nnUNetTrainerHRMedSeg",
    "nnUNetTrainerHRMedSegScratch",
    "nnUNetTrainerHRMedSegPaper",
    "nnUNetTrainerHERSeg",
    "nnUNetTrainerHERSegScratch",
)
PLANS, FOLD = "nnUNetHRMedSegPlans", "0"
CALL_AGAIN = 3


class TimeIsOver(Exception):
    """The minutes of this call are used up."""


class Run:
    """One training: its folders, settings and commands."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.work: Path = args.work.resolve()
        self.deadline = time.monotonic() + 60 * args.minutes
        self.dataset = f"Dataset{args.number:03d}_{args.name}"
        self.raw = self.work / "nnUNet_raw" / self.dataset
        self.preprocessed = self.work / "nnUNet_preprocessed" / self.dataset
        self.trainer = f"{args.trainer}Passes"
        model = f"{self.trainer}__{PLANS}__2d"
        self.fold = self.work / "nnUNet_results" / self.dataset / model / f"fold_{FOLD}"
        self.predictions = self.work / "predictions" / self.dataset / self.trainer
        self.pieces_file = self.work / "pieces.json"
        self.splits = checked_splits(args.splits, args.images)

    @property
    def iterations(self) -> int:
        return -(-len(self.splits["train"]) // self.args.batch_size)

    def command(self, name: str, *arguments: Any) -> None:
        """Run one of nnU-Net's commands until it ends.

        Raises:
            TimeIsOver: the command and its workers were killed at the deadline.
            SystemExit: the command failed.
        """
        cores = str(max(1, min(12, usable_cores())))
        environment = {
            **os.environ,
            **{folder: str(self.work / folder) for folder in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")},
            "nnUNet_def_n_proc": os.environ.get("nnUNet_def_n_proc", cores),
            "nnUNet_n_proc_DA": os.environ.get("nnUNet_n_proc_DA", cores),
            "nnUNet_extTrainer": str(HERE / "recipes"),
            "PAPERS_SETTING_PASSES": str(self.args.passes),
            "PAPERS_SETTING_ITERATIONS": str(self.iterations),
        }
        executable = shutil.which(name, path=str(Path(sys.executable).parent)) or name
        process = subprocess.Popen([executable, *map(str, arguments)], env=environment, start_new_session=True)
        try:
            status = process.wait(timeout=max(1.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the checkpoint of the last pass is complete
            process.wait()
            raise TimeIsOver from None
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        if status:
            sys.exit(f"{name} ended with status {status}; its message is above.")

    def prepare(self) -> None:
        """Write the raw dataset and the plans, unless they exist."""
        if not (self.raw / "dataset.json").is_file():
            write_raw(self.args.images, self.raw, self.splits)
        plans_file = self.preprocessed / f"{PLANS}.json"
        if not plans_file.is_file():
            self.command(
                "nnUNetv2_plan_and_preprocess",
                "-d",
                self.args.number,
                "-c",
                "2d",
                "-pl",
                "nnUNetPlannerHRMedSeg",
                "--no_pp",
            )
            plans = read_json(plans_file)
            configuration = plans["configurations"]["2d"]
            configuration.update(batch_size=self.args.batch_size, patch_size=[self.args.canvas] * 2)
            configuration["architecture"]["arch_kwargs"]["recompute"] = self.args.recompute
            write_atomically(plans_file, json.dumps(plans, indent=4).encode())
        splits = [{"train": self.splits["train"], "val": self.splits["valid"]}]
        write_atomically(self.preprocessed / "splits_final.json", json.dumps(splits).encode())

    def train(self) -> None:
        """Train or continue; the trainer creates the canvas data."""
        if (self.fold / "checkpoint_final.pth").is_file():
            return
        continued = ["--c"] if (self.fold / "checkpoint_latest.pth").is_file() else []
        device = ["-device", self.args.device]
        began, before = time.monotonic(), self.passes_done()
        try:
            self.command(
                "nnUNetv2_train", self.args.number, "2d", FOLD, "-tr", self.trainer, "-p", PLANS, *device, *continued
            )
        finally:
            piece = {"seconds": round(time.monotonic() - began, 1), "passes": [before, self.passes_done()]}
            self.add_piece({**piece, **surroundings(self.args.device, self.args.commit)})
        if not (self.fold / "checkpoint_final.pth").is_file():
            sys.exit("nnUNetv2_train ended without a final checkpoint.")

    def passes_done(self) -> int:
        """Return the number of finished passes in the checkpoint."""
        import torch

        for name in ("checkpoint_final.pth", "checkpoint_latest.pth"):
            if (self.fold / name).is_file():
                # written by the trainings of this script
                return int(torch.load(self.fold / name, map_location="cpu", weights_only=False)["current_epoch"])
        return 0

    def pieces(self) -> list[dict[str, Any]]:
        content = read_json(self.pieces_file) if self.pieces_file.is_file() else {}
        return content.get(f"{self.dataset} {self.trainer}", [])

    def add_piece(self, piece: dict[str, Any]) -> None:
        content = read_json(self.pieces_file) if self.pieces_file.is_file() else {}
        content.setdefault(f"{self.dataset} {self.trainer}", []).append(piece)
        write_atomically(self.pieces_file, json.dumps(content, indent=1).encode())

    def test(self) -> dict[str, Any]:
        """Predict the test images and compare them with their masks at the original size."""
        model = ["-d", self.args.number, "-c", "2d", "-f", FOLD, "-tr", self.trainer, "-p", PLANS]
        where = ["-i", self.raw / "imagesTs", "-o", self.predictions, "-device", self.args.device]
        self.command("nnUNetv2_predict", *model, *where, "--continue_prediction")
        self.command("nnUNetv2_evaluate_simple", self.raw / "labelsTs", self.predictions, "-l", "1")
        summary = read_json(self.predictions / "summary.json")
        cases = [case["metrics"]["1"] for case in summary["metric_per_case"]]
        return {
            "dice": float(np.nanmean([case["Dice"] for case in cases])),
            "iou": float(np.nanmean([case["IoU"] for case in cases])),
            "cases": len(cases),
        }

    def result(self, measured: dict[str, Any]) -> dict[str, Any]:
        settings = ("name", "trainer", "canvas", "batch_size", "passes", "recompute")
        return {
            **{name: getattr(self.args, name) for name in settings},
            "iterations": self.iterations * self.args.passes,
            "images": {part: len(names) for part, names in self.splits.items()},
            "test": measured,
            "training_s": sum(piece["seconds"] for piece in self.pieces()),
            "pieces": self.pieces(),
        }


def checked_splits(file: Path, images: Path) -> dict[str, list[str]]:
    """Return the names of each part for which images exist; print the number of names without an image.

    Raises:
        DataError: the file is invalid, a name is in two parts, or a part has no images.
    """
    try:
        content = read_json(file)
        parts = {part: [str(name) for name in content[part]] for part in ("train", "valid", "test")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f'{file} is not a JSON file with the lists "train", "valid" and "test": {error!r}.') from error
    names = [name for part in parts.values() for name in part]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{file} lists {twice[0]} more than once. Each image belongs to one part.")
    present = {path.stem for path in (images / "images").glob("*")} & {
        path.stem for path in (images / "masks").glob("*")
    }
    found = {part: [name for name in listed if name in present] for part, listed in parts.items()}
    for part, listed in parts.items():
        if not found[part]:
            raise DataError(f"{images} holds no image with a mask for the part {part!r} of {file}.")
        if len(found[part]) < len(listed):
            print(f"{len(listed) - len(found[part])} of {len(listed)} images of the part {part!r} are missing.")
    return found


def write_raw(source: Path, raw: Path, splits: dict[str, list[str]]) -> None:
    """Write nnU-Net's raw dataset; dataset.json comes last."""
    from PIL import Image

    images = {path.stem: path for path in (source / "images").iterdir()}
    masks = {path.stem: path for path in (source / "masks").iterdir()}
    for suffix, names in (("Tr", splits["train"] + splits["valid"]), ("Ts", splits["test"])):
        for folder in ("images", "labels"):
            (raw / f"{folder}{suffix}").mkdir(parents=True, exist_ok=True)
        for name in names:
            Image.open(images[name]).convert("RGB").save(raw / f"images{suffix}" / f"{name}_0000.png")
            mask = (np.asarray(Image.open(masks[name]).convert("L")) > 0).astype(np.uint8)
            Image.fromarray(mask).save(raw / f"labels{suffix}" / f"{name}.png")
    description = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "foreground": 1},
        "numTraining": len(splits["train"] + splits["valid"]),
        "file_ending": ".png",
    }
    write_atomically(raw / "dataset.json", json.dumps(description, indent=2).encode())


def surroundings(device: str, commit: str | None) -> dict[str, Any]:
    """Return machine, versions, commit and date."""
    import torch

    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True)
    return {
        "machine": torch.cuda.get_device_name(0) if device == "cuda" else processor_name(),
        "cores": usable_cores(),
        "versions": {name: version(name) for name in ("torch", "nnunetv2")},
        "commit": commit or (git.stdout.strip() if git.returncode == 0 else None),
        "date": datetime.date.today().isoformat(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder with the subfolders images and masks")
    parser.add_argument("splits", type=Path, help="JSON file with the lists train, valid and test")
    parser.add_argument("work", type=Path, help="folder for nnU-Net's data and results")
    parser.add_argument("--name", required=True, help="name of the dataset, such as cvc_clinicdb")
    parser.add_argument("--number", type=int, default=951, help="number of the dataset (default: 951)")
    parser.add_argument("--trainer", choices=TRAINERS, default=TRAINERS[0])
    parser.add_argument("--minutes", type=float, default=9, help="maximum run time in minutes (default: 9)")
    parser.add_argument("--canvas", type=int, default=1024)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--passes", type=int, default=200, help="passes over the training images (default: 200)")
    parser.add_argument("--recompute", action="store_true", help="evaluate layers again in the backward pass")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--commit", help="commit to record if the clone has no .git")
    parser.add_argument(
        "-o", "--output", type=Path, help="default: benchmarks/results/papers_setting/NAME_TRAINER.json"
    )
    args = parser.parse_args()
    output = args.output or HERE / "results" / "papers_setting" / f"{args.name}_{args.trainer}.json"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # terminates nnU-Net's commands as well
    try:
        run = Run(args)
        run.prepare()
        run.train()
        result = run.result(run.test())
    except TimeIsOver:
        print(f"The time is up after {run.passes_done()} of {args.passes} passes: repeat the command to continue.")
        return CALL_AGAIN
    except HRMedSegError as error:
        print(error, file=sys.stderr)
        return 1
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, (json.dumps(result, indent=1) + "\n").encode())
    print(f"Dice {result['test']['dice']:.4f}, IoU {result['test']['iou']:.4f}. Wrote {output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
