"""nnU-Net's commands as a user runs them: separate processes, with nnU-Net's three folders in the environment."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.nnunet_releases import FEWEST_WORKERS

FAILURE = "failure"  # any exit status except 0
TIMEOUT = 1800  # seconds; the slowest command takes one minute on two idle cores, and much longer on a busy machine

TRAINERS = Path(__file__).parent / "trainers"
ONE_THREAD = Path(__file__).parent / "one_thread"
CPU = ("-device", "cpu")


@dataclass
class Result:
    """The output of a finished command, including standard error, and its exit status."""

    output: str
    status: int


class Running:
    """A running command in its own process group."""

    def __init__(self, command: tuple[str, ...], environment: dict[str, str], folder: Path, output: Path):
        executable = shutil.which(command[0], path=sysconfig.get_path("scripts"))
        assert executable is not None, f"{command[0]} is not installed in this environment"
        self.shown = shlex.join(command)
        self.output_file = output
        with output.open("wb") as stream:
            self.process = subprocess.Popen(
                [executable, *command[1:]],
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.output_file.read_text(errors="replace").replace("\r", "\n")

    def wait(self, expect: int | str = 0, timeout: float = TIMEOUT) -> Result:
        """Wait for the end. Raise an AssertionError with the whole output if the exit status is not as expected."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"not done after {timeout} s: {self.shown}\n{self.output}") from None
        as_expected = status != 0 if expect == FAILURE else status == expect
        if not as_expected:
            raise AssertionError(f"exit status {status}, expected {expect}: {self.shown}\n{self.output}")
        return Result(self.output, status)

    def wait_until(self, condition: Callable[[], Any], timeout: float = TIMEOUT) -> None:
        """Wait for a condition while the command runs."""
        end = time.monotonic() + timeout
        while not condition():
            # in this order: the command may fulfill the condition and end in between
            ended = self.process.poll() is not None
            if ended and condition():
                return
            if ended or time.monotonic() > end:
                self.kill()
                raise AssertionError(f"ended, or took too long, before it did so: {self.shown}\n{self.output}")
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill the command and all its child processes, like a cluster's scheduler or a power cut."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


class NNUNet:
    """nnU-Net's three folders below `folder`, and commands that use them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.raw = folder / "nnUNet_raw"
        self.preprocessed = folder / "nnUNet_preprocessed"
        self.results = folder / "nnUNet_results"
        for path in (self.raw, self.preprocessed, self.results):
            path.mkdir(parents=True, exist_ok=True)
        self.running: list[Running] = []
        self._numbers = itertools.count(1)  # commands are started from several threads

    def environment(self, **changes: str) -> dict[str, str]:
        """Return the environment with `changes`; their PYTHONPATH is prepended to that of the tests."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
        return {
            **environment,
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "nnUNet_def_n_proc": "1",
            "nnUNet_n_proc_DA": "1",
            "OMP_NUM_THREADS": "1",
            **changes,
            "PYTHONPATH": os.pathsep.join(filter(None, (changes.get("PYTHONPATH"), str(ONE_THREAD)))),
        }

    def start(self, *command: object, **environment: str) -> Running:
        words = tuple(map(str, command))
        output = self.folder / f"output_{next(self._numbers):02d}_{words[0]}.txt"
        running = Running(words, self.environment(**environment), self.folder, output)
        self.running.append(running)
        return running

    def run(self, *command: object, expect: int | str = 0, timeout: float = TIMEOUT, **environment: str) -> Result:
        return self.start(*command, **environment).wait(expect, timeout)

    def predict(
        self,
        number: int,
        trainer: str,
        plans: str,
        folds: Iterable[object],
        output: Path,
        *options: str,
        workers: int = FEWEST_WORKERS,
        **changes: str,
    ) -> Path:
        """Predict the new cases of a dataset (imagesTs). Returns `output`.

        workers: processes that read images, and as many that write masks. Each takes seconds to start.
        """
        model = ("-d", number, "-c", "2d", "-f", *folds, "-tr", trainer, "-p", plans)
        images = self.raw / self.dataset(number) / "imagesTs"
        files = ("-i", images, "-o", output, "-npp", workers, "-nps", workers)
        self.run("nnUNetv2_predict", *model, *files, *options, *CPU, **changes)
        return output

    def dataset(self, number: int) -> str:
        """Return the full name of a dataset from its number."""
        (found,) = self.raw.glob(f"Dataset{number:03d}_*")
        return found.name

    def plans_file(self, number: int, name: str) -> Path:
        return self.preprocessed / self.dataset(number) / f"{name}.json"

    def plans(self, number: int, name: str) -> dict[str, Any]:
        return json.loads(self.plans_file(number, name).read_text())

    def edit_plans(self, number: int, name: str, **changes: Any) -> None:
        """Change settings of the configuration 2d in a plans file, as a user would in an editor."""
        plans = self.plans(number, name)
        plans["configurations"]["2d"].update(changes)
        self.plans_file(number, name).write_text(json.dumps(plans, indent=4))

    def model(self, number: int, trainer: str, plans: str) -> Path:
        return self.results / self.dataset(number) / f"{trainer}__{plans}__2d"

    def copy(self, numbers: Iterable[int], folder: Path) -> NNUNet:
        """Copy some datasets with all their preprocessed data and results, so that a test can damage them."""
        other = NNUNet(folder)
        for name in map(self.dataset, numbers):
            for source in (self.raw, self.preprocessed, self.results):
                if (source / name).is_dir():
                    shutil.copytree(source / name, folder / source.name / name)
        return other
