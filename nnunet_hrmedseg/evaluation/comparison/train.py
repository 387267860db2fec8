"""One fold of one model, trained within a budget and validated: in a process of its own."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.io.child_processes import terminate_group
from nnunet_hrmedseg.io.files import read_json_object

__all__ = ["is_validated", "main", "train_fold"]

LINES_SAID = 20  # of what a failed training wrote to its standard error


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
    """Do what is missing of a fold: train it or go on with its training, then validate it. Shows what nnU-Net prints.

    Args:
        dataset: number or full name.
        fold: a number or "all".
        trainer_name: any trainer class that nnU-Net finds.
        epochs, minutes: the training's budget, one of the two; see `with_budget`.
        device: "cuda", "cpu" or "mps", as nnU-Net's `-device`.
        npz: also keep the validation's probabilities, which an ensemble needs.

    Raises:
        HRMedSegError: it failed; the message has the last that it wrote to its standard error.
    """
    command = [sys.executable, "-u", "-m", __name__]
    command += [str(dataset), configuration, str(fold), "-tr", trainer_name, "-p", plans_name, "-device", device]
    for option, value in (("--epochs", epochs), ("--minutes", minutes)):
        command += [] if value is None else [option, str(value)]
    command += ["--npz"] * npz
    # a group of its own: nnU-Net's workers outlive a training that was killed, and are ended with the group
    process = subprocess.Popen(
        [*command, "--exit_when_stdin_closes"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    last: deque[str] = deque(maxlen=LINES_SAID)
    shown = threading.Thread(target=_show, args=(process.stderr, last), daemon=True)
    shown.start()
    try:
        status = process.wait()
    finally:
        terminate_group(process)
    shown.join()
    if status != 0:
        raise HRMedSegError(
            f"{trainer_name}, {plans_name}, {configuration}, fold {fold} of data set {dataset} failed with status "
            f"{status}. The last that it said:\n{''.join(last)}"
        )


def exit_when_stdin_closes() -> None:
    """End this process and all in its group as soon as nobody holds the other end of its standard input any more: so a
    training does not outlive the command that started it, however that is killed."""

    def wait() -> None:
        while os.read(0, 1):  # not by sys.stdin, whose lock a forked worker would find held for ever
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
    """What `train_fold` does, in this process. Returns the exit status: 0 done, 1 a fault that was said in words."""
    parser = argparse.ArgumentParser(prog="python -m nnunet_hrmedseg.evaluation.comparison.train", description=__doc__)
    parser.add_argument("dataset", help="number or full name")
    parser.add_argument("configuration")
    parser.add_argument("fold", type=lambda text: text if text == "all" else int(text))
    parser.add_argument("-tr", default="nnUNetTrainer", help="trainer class [default: %(default)s]")
    parser.add_argument("-p", default="nnUNetPlans", help="plans name [default: %(default)s]")
    parser.add_argument("--epochs", type=int, help="train so many epochs")
    parser.add_argument("--minutes", type=float, help="train for so long")
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), default="cuda")
    parser.add_argument("--npz", action="store_true", help="keep the validation's probabilities")
    parser.add_argument("--exit_when_stdin_closes", action="store_true", help="when the standard input is closed")
    args = parser.parse_args(arguments)
    if args.exit_when_stdin_closes:
        exit_when_stdin_closes()
    try:
        _train(args)
    except HRMedSegError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _train(args: argparse.Namespace) -> None:
    """`nnUNetv2_train` with another class of the same name: see nnunetv2/run/run_training.py."""
    # here, as the processes that nnU-Net spawns import this module anew
    import torch
    from nnunetv2.run.run_training import maybe_load_checkpoint
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    from nnunet_hrmedseg.evaluation.comparison.budget import with_budget
    from nnunet_hrmedseg.io.machine import usable_cores
    from nnunet_hrmedseg.nnunet_versions import find_trainer, required_nnunet_folder

    dataset = maybe_convert_to_dataset_name(int(args.dataset) if args.dataset.isdigit() else args.dataset)
    folder = Path(get_output_folder(dataset, args.tr, args.p, args.configuration, args.fold))
    trained = (folder / "checkpoint_final.pth").is_file()
    if trained and is_validated(folder / "validation", args.npz):
        print(f"{folder} is trained and validated.")
        return
    preprocessed = Path(required_nnunet_folder("nnUNet_preprocessed"), dataset)
    plans_file = preprocessed / f"{args.p}.json"
    if not plans_file.is_file():
        raise HRMedSegError(f"There are no plans {plans_file}: run nnUNetv2_plan_and_preprocess for {dataset} first.")

    torch.set_num_threads(usable_cores() if args.device == "cpu" else 1)
    if torch.cuda.is_available():
        torch.backends.cudnn.deterministic = False
        torch.backends.cudnn.benchmark = True
    trainer_class = with_budget(find_trainer(args.tr), epochs=args.epochs, minutes=args.minutes)
    continued = not trained and (folder / "checkpoint_latest.pth").is_file()
    trainer = trainer_class(
        plans={**read_json_object(plans_file, "nnU-Net plan"), "continue_training": continued},
        configuration=args.configuration,
        fold=args.fold,
        dataset_json=read_json_object(preprocessed / "dataset.json", "dataset.json of nnU-Net"),
        device=torch.device(args.device),
    )
    maybe_load_checkpoint(trainer, continued, trained)
    if not trained:
        trainer.run_training()
    trainer.perform_actual_validation(args.npz)


def is_validated(folder: Path, npz: bool) -> bool:
    """Whether a fold's validation folder is whole; with `npz`, the probabilities of every case among it."""
    summary = folder / "summary.json"
    if not summary.is_file():
        return False
    cases = read_json_object(summary, "summary.json of nnU-Net").get("metric_per_case")
    return not npz or (isinstance(cases, list) and len(list(folder.glob("*.npz"))) == len(cases))


if __name__ == "__main__":
    sys.exit(main())
