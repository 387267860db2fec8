"""Train one fold of one model within a budget and validate it, in a separate process."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

from nnunet_hrmedseg.errors import DataError, HRMedSegError, PlanError, SetupError
from nnunet_hrmedseg.io.child_processes import terminate_group
from nnunet_hrmedseg.io.files import read_json_object

__all__ = ["is_validated", "main", "train_fold"]

LINES_SHOWN = 20  # of the standard error of a failed training


def train_fold(
    dataset: str | int,
    configuration: str,
    fold: int | str,
    trainer_name: str,
    plans_name: str,
    *,
    epochs: int | None,
    minutes: float | None,
    device: str,
    npz: bool = False,
) -> None:
    """Train a fold, or continue its training, and validate it, as far as not done yet. Shows what nnU-Net prints.

    Args:
        dataset: number or full name.
        configuration: such as 2d.
        fold: a number or "all".
        trainer_name: any trainer class that nnU-Net finds.
        plans_name: such as nnUNetPlans.
        epochs: length of the training in epochs, or
        minutes: its length in minutes; see `with_budget`.
        device: "cuda", "cpu" or "mps", as nnU-Net's `-device`.
        npz: keep the probabilities of the validation, which an ensemble needs.

    Raises:
        SetupError: the training failed. The message has the last lines of its standard error.
    """
    command = [sys.executable, "-u", "-m", __name__]
    command += [str(dataset), configuration, str(fold), "-tr", trainer_name, "-p", plans_name, "-device", device]
    for option, value in (("--epochs", epochs), ("--minutes", minutes)):
        command += [] if value is None else [option, str(value)]
    command += ["--npz"] * npz
    # a new process group: nnU-Net's workers survive a killed training, and are killed with the group
    process = subprocess.Popen(
        [*command, "--exit_when_stdin_closes"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    last: deque[str] = deque(maxlen=LINES_SHOWN)
    shown = threading.Thread(target=_show, args=(process.stderr, last), daemon=True)
    shown.start()
    try:
        status = process.wait()
    finally:
        terminate_group(process)
    shown.join()
    if status != 0:
        raise SetupError(
            f"{trainer_name}, {plans_name}, {configuration}, fold {fold} of dataset {dataset} failed with status "
            f"{status}. Its last output:\n{''.join(last)}"
        )


def exit_when_stdin_closes() -> None:
    """Kill this process and its group as soon as the other end of its standard input is closed.

    A training thus does not outlive the command that started it, however that is killed.
    """

    def wait() -> None:
        while os.read(0, 1):  # not through sys.stdin, whose lock would stay held in a forked worker
            pass
        if sys.platform != "win32":
            os.killpg(os.getpgid(0), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _show(stream, last: deque[str]) -> None:
    for line in stream:
        sys.stderr.write(line)
        last.append(line)


def main(arguments: list[str] | None = None) -> int:
    """Do what `train_fold` does, in this process.

    Returns:
        exit status: 0 done, 1 an error that was reported.
    """
    parser = argparse.ArgumentParser(prog="python -m nnunet_hrmedseg.evaluation.comparison.train", description=__doc__)
    parser.add_argument("dataset", help="number or full name")
    parser.add_argument("configuration")
    parser.add_argument("fold", type=lambda text: text if text == "all" else int(text))
    parser.add_argument(
        "-tr", dest="trainer_name", default="nnUNetTrainer", help="trainer class [default: %(default)s]"
    )
    parser.add_argument("-p", dest="plans_name", default="nnUNetPlans", help="plans name [default: %(default)s]")
    parser.add_argument("--epochs", type=int, help="number of epochs")
    parser.add_argument("--minutes", type=float, help="length of the training in minutes")
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), default="cuda")
    parser.add_argument("--npz", action="store_true", help="keep the probabilities of the validation")
    parser.add_argument(
        "--exit_when_stdin_closes", action="store_true", help="stop as soon as the standard input is closed"
    )
    options = vars(parser.parse_args(arguments))
    if options.pop("exit_when_stdin_closes"):
        exit_when_stdin_closes()
    try:
        _train(**options)
    except HRMedSegError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _train(
    *,
    dataset: str,
    configuration: str,
    fold: int | str,
    trainer_name: str,
    plans_name: str,
    epochs: int | None,
    minutes: float | None,
    device: str,
    npz: bool,
) -> None:
    """Train like `nnUNetv2_train` with another class of the same name: see nnunetv2/run/run_training.py."""
    # imported here, because the processes that nnU-Net spawns import this module again
    import torch
    from nnunetv2.run.run_training import maybe_load_checkpoint
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    from nnunet_hrmedseg.evaluation.comparison.budget import with_budget
    from nnunet_hrmedseg.io.machine import usable_cores
    from nnunet_hrmedseg.nnunet_versions import find_trainer, full_dataset_name, required_nnunet_folder

    name = full_dataset_name(dataset)
    folder = Path(get_output_folder(name, trainer_name, plans_name, configuration, fold))
    trained = (folder / "checkpoint_final.pth").is_file()
    if trained and is_validated(folder / "validation", npz):
        print(f"{folder} is already trained and validated.")
        return
    preprocessed = Path(required_nnunet_folder("nnUNet_preprocessed"), name)
    plans_file = preprocessed / f"{plans_name}.json"
    if not plans_file.is_file():
        raise PlanError(f"There are no plans {plans_file}: run nnUNetv2_plan_and_preprocess for {name} first.")

    torch.set_num_threads(usable_cores() if device == "cpu" else 1)
    if torch.cuda.is_available():
        torch.backends.cudnn.deterministic = False
        torch.backends.cudnn.benchmark = True
    trainer_class = with_budget(find_trainer(trainer_name), epochs=epochs, minutes=minutes)
    continued = not trained and (folder / "checkpoint_latest.pth").is_file()
    trainer = trainer_class(
        plans={**read_json_object(plans_file, "nnU-Net plan"), "continue_training": continued},
        configuration=configuration,
        fold=fold,
        dataset_json=read_json_object(preprocessed / "dataset.json", "dataset.json of nnU-Net"),
        device=torch.device(device),
    )
    maybe_load_checkpoint(trainer, continued, trained)
    if not trained:
        trainer.run_training()
    trainer.perform_actual_validation(npz)


def is_validated(folder: Path, npz: bool) -> bool:
    """Return whether the validation of a fold is complete; with `npz`, including the probabilities of every case."""
    summary = folder / "summary.json"
    if not summary.is_file():
        return False
    try:
        cases = read_json_object(summary, "summary.json of nnU-Net").get("metric_per_case")
    except DataError:  # nnU-Net was stopped, or the disk was full, while it was written
        return False
    return not npz or (isinstance(cases, list) and len(list(folder.glob("*.npz"))) == len(cases))


if __name__ == "__main__":
    sys.exit(main())
