"""`hrmedseg demo`: from images to predictions with nothing but the stock nnU-Net commands."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from nnunet_hrmedseg.demo.dataset import DATASET_ID, DATASET_NAME, build_dataset
from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.io import shell
from nnunet_hrmedseg.io.child_processes import run_in_group
from nnunet_hrmedseg.io.devices import choose_device
from nnunet_hrmedseg.io.files import make_output_dir
from nnunet_hrmedseg.nnunet_versions import nnunet_folder

__all__ = ["run_demo"]

_MARK = ".hrmedseg_demo"  # says that a folder is the demo's own, so that --overwrite deletes nothing else
_ROWS_IN_PICTURE = 4
_TRAINER = {"cuda": "nnUNetTrainerHRMedSeg_10epochs"}
_TRAINER_WITHOUT_GPU = "nnUNetTrainerHRMedSeg_1epoch"


def run_demo(output: str, *, device: str | None = None, overwrite: bool = False) -> int:
    """Build the data set, plan, train at 1024 x 1024, predict the held-out images; print their Dice, write demo.png.

    Args:
        output: folder to work in; made, and refused if it holds anything else.
        device: as nnU-Net's `-device`; default: cuda, else mps, else cpu.
        overwrite: delete what an earlier demo left there.

    Raises:
        HRMedSegError: the folder is in use, or a command failed.
    """
    started = time.time()
    folder = _own_folder(Path(output), overwrite)
    device = choose_device(device)
    trainer = _TRAINER.get(device, _TRAINER_WITHOUT_GPU)
    environment = _environment(folder)
    dataset = build_dataset(folder / "nnUNet_raw")
    predictions = folder / "predictions"
    model = ["-tr", trainer]
    workers = environment["nnUNet_def_n_proc"]
    on_device = [] if device == "cuda" else ["-device", device]

    print(f"A data set of {len(list((dataset / 'imagesTr').iterdir()))} training images and ", end="")
    print(f"{len(list((dataset / 'imagesTs').iterdir()))} held-out ones is at {dataset}\n")
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
    print("\nDice of the held-out images")
    for case, value in dice.items():
        print(f"  {case:<10} {value:.3f}")
    mean = sum(dice.values()) / len(dice)
    picture = folder / "demo.png"
    _write_picture(dataset, predictions, dice, picture)
    print(f"  {'mean':<10} {mean:.3f}")
    print(f"\nPicture: {picture}\nTook {(time.time() - started) / 60:.1f} minutes on {device}.")
    return 0


def _own_folder(folder: Path, overwrite: bool) -> Path:
    folder = folder.expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / _MARK).is_file():
            raise HRMedSegError(f"{folder} exists and is not a demo's folder: name another one with -o.")
        if not overwrite:
            raise HRMedSegError(f"{folder} holds an earlier demo: add --overwrite, or name another folder with -o.")
        shutil.rmtree(folder)
    make_output_dir(folder)
    (folder / _MARK).touch()
    return folder


def _environment(folder: Path) -> dict[str, str]:
    """nnU-Net's three variables in the demo's folder, and as many workers as the machine bears."""
    environment = dict(os.environ)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        fixed = nnunet_folder(name)
        if fixed is not None and fixed != os.environ.get(name):
            raise HRMedSegError(
                f"nnU-Net's paths.py sets {name} to {fixed}, so its commands would not work in the demo's folder but "
                f"on your data. Run the demo in a Python environment with an unchanged nnU-Net."
            )
        (folder / name).mkdir(exist_ok=True)
        environment[name] = str(folder / name)
    workers = max(1, min(8, (os.cpu_count() or 1) // 2))
    environment.setdefault("nnUNet_def_n_proc", str(workers))
    environment.setdefault("nnUNet_n_proc_DA", str(workers))
    return environment


def _run(command: list[str], environment: dict[str, str]) -> None:
    in_words = subprocess.list2cmdline(command) if shell.ON_WINDOWS else shlex.join(command)
    print(f"\n$ {in_words}", flush=True)
    executable = shutil.which(command[0], path=sysconfig.get_path("scripts")) or shutil.which(command[0])
    if executable is None:
        raise HRMedSegError(f"{command[0]} is not installed beside {sys.executable}: pip install nnunetv2")
    status = run_in_group([executable, *command[1:]], environment)
    if status != 0:
        raise HRMedSegError(
            f"{command[0]} ended with status {status}; its own message is above. "
            f"'hrmedseg doctor' checks the installation."
        )


def _dice(summary: Path) -> dict[str, float]:
    cases = json.loads(summary.read_text())["metric_per_case"]
    return {Path(case["prediction_file"]).stem: case["metrics"]["1"]["Dice"] for case in cases}


def _write_picture(dataset: Path, predictions: Path, dice: dict[str, float], file: Path) -> None:
    from nnunet_hrmedseg.demo.picture import write_picture

    # spread over the range of results, best and worst among them
    ranked = sorted(dice, key=dice.__getitem__, reverse=True)
    shown = [ranked[round(i * (len(ranked) - 1) / (_ROWS_IN_PICTURE - 1))] for i in range(_ROWS_IN_PICTURE)]
    write_picture(
        [
            (
                f"{DATASET_NAME} {case}   Dice {dice[case]:.2f}",
                dataset / "imagesTs" / f"{case}_0000.png",
                dataset / "labelsTs" / f"{case}.png",
                predictions / f"{case}.png",
            )
            for case in shown
        ],
        file,
    )
