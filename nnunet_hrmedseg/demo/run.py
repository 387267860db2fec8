"""Run the demo: from images to predictions with nnU-Net's own commands."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from nnunet_hrmedseg.demo.dataset import DATASET_ID, build_dataset
from nnunet_hrmedseg.errors import SetupError
from nnunet_hrmedseg.io import shell
from nnunet_hrmedseg.io.child_processes import run_in_group
from nnunet_hrmedseg.io.devices import choose_device
from nnunet_hrmedseg.io.files import make_output_dir
from nnunet_hrmedseg.nnunet_versions import nnunet_folder

__all__ = ["DemoResult", "run_demo"]

_MARK = ".hrmedseg_demo"  # marks a folder as the demo's, so that --overwrite deletes nothing else
_TRAINER = {"cuda": "nnUNetTrainerHRMedSeg_10epochs"}
_TRAINER_WITHOUT_GPU = "nnUNetTrainerHRMedSeg_1epoch"


@dataclass(frozen=True)
class DemoResult:
    """What the demo made.

    Attributes:
        folder: with the dataset, the trained model and the predictions.
        picture: demo.png.
        dice: Dice of each held-out image.
        device: that was trained on.
    """

    folder: Path
    picture: Path
    dice: dict[str, float]
    device: str

    @property
    def mean_dice(self) -> float:
        """Mean Dice of the held-out images."""
        return sum(self.dice.values()) / len(self.dice)


def run_demo(
    output: str | os.PathLike[str] = "hrmedseg_demo", *, device: str | None = None, overwrite: bool = False
) -> DemoResult:
    """Build the dataset, plan, train at 1024 x 1024, predict and evaluate the held-out images, and draw demo.png.

    Args:
        output: folder to work in: new or empty.
        device: "cuda", "mps" or "cpu". Default: the first of these that is available.
        overwrite: delete the results of an earlier demo in this folder.

    Raises:
        SetupError: the folder is in use, a device or a command is missing, or a command failed.
    """
    folder = _own_folder(Path(output), overwrite)
    device = choose_device(device)
    trainer = _TRAINER.get(device, _TRAINER_WITHOUT_GPU)
    environment = _environment(folder)
    dataset = build_dataset(folder / "nnUNet_raw")
    predictions = folder / "predictions"
    model = ["-tr", trainer]
    workers = environment["nnUNet_def_n_proc"]
    on_device = [] if device == "cuda" else ["-device", device]

    numbers = [len(list((dataset / name).iterdir())) for name in ("imagesTr", "imagesTs")]
    print(f"Dataset of {numbers[0]} training images and {numbers[1]} held-out images: {dataset}\n")
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        print(shell.format_export(name, environment[name]))
    for command in (
        ["nnUNetv2_plan_and_preprocess", "-d", str(DATASET_ID), "-c", "2d", "-npfp", workers, "-np", workers],
        ["nnUNetv2_train", str(DATASET_ID), "2d", "0", *model, *on_device],
        ["nnUNetv2_predict", "-d", str(DATASET_ID), "-c", "2d", "-f", "0", *model]
        + ["-i", str(dataset / "imagesTs"), "-o", str(predictions), *on_device],
        ["nnUNetv2_evaluate_simple", str(dataset / "labelsTs"), str(predictions), "-l", "1"],
    ):
        _run(command, environment)

    dice = _dice(predictions / "summary.json")
    picture = folder / "demo.png"
    _write_picture(dataset, predictions, dice, picture)
    return DemoResult(folder, picture, dice, device)


def _own_folder(folder: Path, overwrite: bool) -> Path:
    folder = folder.expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / _MARK).is_file():
            raise SetupError(f"{folder} exists and does not belong to a demo. Give another folder with -o.")
        if not overwrite:
            raise SetupError(f"{folder} holds an earlier demo. Add --overwrite, or give another folder with -o.")
        shutil.rmtree(folder)
    make_output_dir(folder)
    (folder / _MARK).touch()
    return folder


def _environment(folder: Path) -> dict[str, str]:
    """Return an environment with nnU-Net's variables in the demo's folder, and workers for this machine."""
    environment = dict(os.environ)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        fixed = nnunet_folder(name)
        if fixed is not None and fixed != os.environ.get(name):
            raise SetupError(
                f"nnU-Net's paths.py sets {name} to {fixed}, so its commands would use your data instead of the "
                f"demo's folder. Run the demo in a Python environment with an unchanged nnU-Net."
            )
        (folder / name).mkdir(exist_ok=True)
        environment[name] = str(folder / name)
    workers = max(1, min(8, (os.cpu_count() or 1) // 2))
    environment.setdefault("nnUNet_def_n_proc", str(workers))
    environment.setdefault("nnUNet_n_proc_DA", str(workers))
    return environment


def _run(command: list[str], environment: dict[str, str]) -> None:
    text = subprocess.list2cmdline(command) if shell.ON_WINDOWS else shlex.join(command)
    print(f"\n$ {text}", flush=True)
    executable = shutil.which(command[0], path=sysconfig.get_path("scripts")) or shutil.which(command[0])
    if executable is None:
        raise SetupError(f"{command[0]} is not installed beside {sys.executable}: pip install nnunetv2")
    status = run_in_group([executable, *command[1:]], environment)
    if status != 0:
        raise SetupError(
            f"{command[0]} failed with status {status}; see its message above. "
            f"'hrmedseg doctor' checks the installation."
        )


def _dice(summary: Path) -> dict[str, float]:
    cases = json.loads(summary.read_text())["metric_per_case"]
    return {Path(case["prediction_file"]).stem: case["metrics"]["1"]["Dice"] for case in cases}


def _write_picture(dataset: Path, predictions: Path, dice: dict[str, float], file: Path) -> None:
    from PIL import Image

    from nnunet_hrmedseg.demo.picture import write_picture

    # images of one size are of one kind: the first of each size, from best to worst
    kinds: dict[tuple[int, int], str] = {}
    for case in sorted(dice):
        with Image.open(dataset / "imagesTs" / f"{case}_0000.png") as image:
            kinds.setdefault(image.size, case)
    write_picture(
        [
            (
                f"Dice {dice[case]:.2f}",
                dataset / "imagesTs" / f"{case}_0000.png",
                dataset / "labelsTs" / f"{case}.png",
                predictions / f"{case}.png",
            )
            for case in sorted(kinds.values(), key=dice.__getitem__, reverse=True)
        ],
        file,
    )
