"""Check and measure this package on a CUDA GPU, in eight minutes on one H100. The most important checks run first.

    python scripts/gpu_check.py                          from a clone; writes gpu_check.jsonl
    python scripts/gpu_check.py --seconds 240 --only parity train
    python scripts/gpu_check.py --list

Each check prints a line of JSON as soon as its result is known, and appends it to the output file. Checks for which the
time is too short are listed with "left_out". Exit status 0: all checks passed; 1: a check failed or a limit is
exceeded; 2: there is no usable GPU.

The package does not have to be installed, but nnU-Net must find its trainers: python -m nnunet_hrmedseg.cli link. On a
machine without internet access, `--missing` prints the requirements that are absent, for `pip download` on another
machine; docs/how-to/check-a-gpu.md has the commands.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(Path(__file__).parent)]
STAND_IN = "stand-in"  # scripts/fake_gpu, with which only memory is meaningful
NNUNET = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@dataclass(frozen=True)
class Check:
    """A check: name, call, estimated seconds on an H100, memory in GB, and upper limits of results."""

    name: str
    call: Callable[[Any, Path], dict[str, Any]]  # (module gpu_measurements, working folder)
    seconds: float = 5
    gb: float = 1.0
    limits: dict[str, float] = field(default_factory=dict)


def training(title: str, images: int, seconds: float, gb: float, limit: float | None = None, **options: Any) -> Check:
    limits = {} if limit is None else {"peak_gb_per_image": limit}
    return Check(f"train {title}", lambda m, _: m.training(images, **options), seconds, gb, limits)


def peer(name: str, images: int, seconds: float, gb: float, **options: Any) -> Check:
    how = "compiled" if options.get("compiled") else "eager"
    return Check(f"train {name} {images} {how}", lambda m, _: m.peer(name, images, **options), seconds, gb)


def gpu_parity() -> Any:
    import gpu_parity

    return gpu_parity


RECOMPUTED, COMPILED = {"recompute": True}, {"compiled": True, "repeats": 30}
HERSEG = {"name": "nnUNetTrainerHERSeg"}

CHECKS = [
    Check("parity hrmedseg", lambda m, _: gpu_parity().parity("hrmedseg"), 10),
    Check("parity herseg", lambda m, _: gpu_parity().parity("herseg"), 10),
    Check("parity segmaformer", lambda m, _: gpu_parity().parity("segmaformer"), 20),
    Check("parity student", lambda m, _: gpu_parity().student_parity()),
    training("hrmedseg 16 recomputed eager", 16, 8, 2, 0.10, **RECOMPUTED),
    training("hrmedseg 16 kept eager", 16, 8, 8),
    Check("validation 16 2 classes", lambda m, _: m.validation(16, 2), 8, 2, {"peak_gb_per_image": 0.10}),
    Check("validation 16 14 classes", lambda m, _: m.validation(16, 14), 8, 8, {"peak_gb_per_image": 0.10}),
    Check("augmentation 16", lambda m, _: m.augmentation(), 5, 4),
    Check("commands", lambda m, folder: m.commands(folder), 70, 4),
    training("hrmedseg 16 kept compiled", 16, 80, 8, 0.30, **COMPILED),
    training("hrmedseg 16 recomputed compiled", 16, 80, 4, 0.10, **COMPILED, **RECOMPUTED),
    training("hrmedseg 2 kept eager", 2, 5, 2),
    training("hrmedseg 2 recomputed eager", 2, 5, 2, **RECOMPUTED),
    peer("nnunet", 16, 10, 30),
    peer("segformer", 16, 10, 30),
    peer("resenc", 16, 15, 45),
    Check("load 16", lambda m, folder: m.loading(folder, augmented=False), 20),
    Check("load and augment 16", lambda m, folder: m.loading(folder, augmented=True), 25),
    Check("validation 16 50 classes", lambda m, _: m.validation(16, 50), 8, 30, {"peak_gb_per_image": 0.10}),
    training("herseg 16 kept eager", 16, 8, 8, **HERSEG),
    training("hrmedseg 16 kept eager 14 classes", 16, 8, 8, classes=14),
    Check("predict 1 eager", lambda m, _: m.prediction(1), 5),
    peer("nnunet", 2, 5, 5),
    peer("resenc", 2, 5, 7),
    peer("segformer", 2, 5, 5),
    training("hrmedseg 2 kept compiled", 2, 60, 2, **COMPILED),
    training("hrmedseg 2 kept compiled, CUDA graphs", 2, 60, 2, **COMPILED, cuda_graphs=True),
    Check("predict 1 compiled", lambda m, _: m.prediction(1, compiled=True, repeats=30), 40),
    Check("validation 16 2 classes compiled", lambda m, _: m.validation(16, 2, compiled=True), 40, 2),
    peer("nnunet", 16, 60, 30, compiled=True),
    training("hrmedseg 2 recomputed compiled", 2, 60, 2, **COMPILED, **RECOMPUTED),
    training("herseg 16 kept compiled", 16, 80, 8, **COMPILED, **HERSEG),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("gpu_check.jsonl"), help="file to which lines are appended"
    )
    parser.add_argument("--seconds", type=float, default=465, help="total time in seconds (default: 465)")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TEXT", help="run only checks whose name contains one of the texts"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the checks")
    parser.add_argument(
        "--missing", action="store_true", help="print requirements of the package that are not installed"
    )
    parser.add_argument("--child", nargs=2, metavar=("NAMES", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return run_checks(json.loads(args.child[0]), Path(args.child[1]))
    if args.missing:
        print("\n".join(missing_requirements()))
        return 0
    chosen = [check for check in CHECKS if any(text in check.name for text in args.only)]
    if args.list:
        print("\n".join(check.name for check in chosen))
        return 0
    return supervise(chosen, args.output, time.monotonic() + args.seconds)


# ---- the parent process: time, memory, and checks that end their process ---------------------------------------------


def supervise(checks: list[Check], output: Path, deadline: float) -> int:
    """Run the checks in a child process, restarted at the next check if it dies; return the exit status."""
    lines = Lines(output)
    surroundings, reason = machine()
    if reason is not None:
        lines.add({"check": "machine", **surroundings, "error": reason})
        return 2
    lines.add({"check": "machine", **surroundings})
    waiting = [check for check in checks if not too_large(check, surroundings["memory_gb"], lines)]
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as folder:
        while waiting:
            fitting = [check for check in waiting if time.monotonic() + check.seconds < deadline]
            if not fitting:
                break
            names, environment = [check.name for check in fitting], dict(os.environ)
            environment.update({name: str(Path(folder, name)) for name in NNUNET})
            environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), environment.get("PYTHONPATH", "")])
            child = subprocess.Popen(
                child_command(names, folder),
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                start_new_session=True,
            )
            try:
                done = follow(child, fitting, lines, deadline)
            finally:
                if child.poll() is None:
                    kill_group(child)
            waiting = [check for check in waiting if check.name not in done]
    for check in waiting:
        lines.add({"check": check.name, "left_out": f"not enough time: it takes about {check.seconds:.0f} s"})
    return int(lines.faults > 0)


def child_command(names: list[str], folder: str) -> list[str]:
    return [sys.executable, __file__, "--child", json.dumps(names), folder]


def follow(child: subprocess.Popen, checks: list[Check], lines: Lines, deadline: float) -> set[str]:
    """Print the lines of a process that runs checks. Return the finished checks, including one in which it died.

    The process is killed at the deadline, and before a check that would exceed it.
    """
    stopped = threading.Event()

    def kill() -> None:
        stopped.set()
        kill_group(child)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), kill)
    timer.start()
    done: set[str] = set()
    running: str | None = None
    by_name = {check.name: check for check in checks}
    assert child.stdout is not None
    for line in child.stdout:
        try:
            entry = json.loads(line)
            name = entry.get("started") or entry["check"]
            check = by_name[name]
        except (ValueError, KeyError, TypeError, AttributeError):
            print(line, end="", file=sys.stderr)  # printed by nnU-Net or the compiler
            continue
        if "started" in entry:
            if time.monotonic() + check.seconds > deadline:
                kill()
                break
            running = name
            continue
        exceeded = [f"{key} above {limit}" for key, limit in check.limits.items() if entry.get(key, 0) > limit]
        lines.add({**entry, **({"fault": "; ".join(exceeded)} if exceeded else {})})
        done.add(name)
        running = None
    child.wait()
    timer.cancel()
    if stopped.is_set():
        if running is not None:
            lines.add({"check": running, "left_out": "not finished within the time"})
    elif running is not None or not done:
        running = running or checks[0].name  # it did not start: do not try the same check again
        lines.add({"check": running, "error": f"the process ended with status {child.returncode}"})
    return done if running is None else {*done, running}


def kill_group(child: subprocess.Popen) -> None:
    """Kill the process with all workers that it started."""
    try:
        os.killpg(child.pid, 9)
    except (ProcessLookupError, AttributeError):
        child.kill()


class Lines:
    """The output: one line per check, on the terminal and in the file."""

    def __init__(self, file: Path) -> None:
        self.file, self.began, self.faults = file, time.monotonic(), 0
        file.parent.mkdir(parents=True, exist_ok=True)

    def add(self, entry: dict[str, Any]) -> None:
        self.faults += "error" in entry or "fault" in entry
        line = json.dumps({"at_s": round(time.monotonic() - self.began, 1), **rounded(entry)})
        print(line, flush=True)
        with self.file.open("a") as file:
            file.write(line + "\n")


def rounded(value: Any) -> Any:
    """Return the value with four significant digits."""
    if isinstance(value, dict):
        return {name: rounded(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def machine() -> tuple[dict[str, Any], str | None]:
    """Return GPU and versions, and the reason if no check can run."""
    missing = missing_requirements()
    if missing:
        return {}, f"not installed: {' '.join(missing)}"
    import torch

    from nnunet_hrmedseg.doctor.lookup_modules import lookup_modules
    from nnunet_hrmedseg.errors import HRMedSegError
    from nnunet_hrmedseg.io.devices import check_gpu, gpu_limitations
    from nnunet_hrmedseg.io.machine import processor_name

    found: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "processor": processor_name(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "triton", "nnunetv2") if installed(name)
        },
        "cuda": torch.version.cuda,
    }
    if not all(module.present for module in lookup_modules()):
        return found, "nnU-Net does not find this package's trainers: run python -m nnunet_hrmedseg.cli link"
    try:
        check_gpu(torch.device("cuda", 0))
    except HRMedSegError as error:
        return found, str(error)
    properties = torch.cuda.get_device_properties(0)
    capability = torch.cuda.get_device_capability(0)
    found.update(
        gpu=properties.name,
        memory_gb=properties.total_memory / 1e9,
        compute_capability=".".join(map(str, capability)),
        bfloat16=torch.cuda.is_bf16_supported(including_emulation=False),
        driver=driver_version(),
        limitations=gpu_limitations(capability),
    )
    return found, None


def driver_version() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.splitlines()[0].strip()
    except (OSError, IndexError, subprocess.SubprocessError):
        return None


def installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
        return True
    except importlib.metadata.PackageNotFoundError:
        return False


def missing_requirements() -> list[str]:
    """Return the direct and indirect requirements of the package that are not installed."""
    from environments import declared
    from packaging.requirements import Requirement

    missing: dict[str, str] = {}
    seen: set[str] = set()
    waiting = list(declared().values())
    while waiting:
        requirement = waiting.pop()
        name = requirement.name.lower().replace("_", "-")
        if name in seen or (requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        if installed(requirement.name):
            waiting += map(Requirement, importlib.metadata.requires(requirement.name) or [])
        else:
            missing[name] = f"{requirement.name}{requirement.specifier}"
    return sorted(missing.values())


def too_large(check: Check, memory_gb: float, lines: Lines) -> bool:
    """Report a check for which the GPU has too little memory."""
    if check.gb <= memory_gb:
        return False
    lines.add({"check": check.name, "left_out": f"it takes about {check.gb:.0f} GB, the GPU has {memory_gb:.1f} GB"})
    return True


# ---- the child process: one check after the other --------------------------------------------------------------------


def run_checks(names: list[str], folder: Path) -> int:
    for name in NNUNET:
        (folder / name).mkdir(exist_ok=True)
    import gpu_measurements as measurements
    import torch

    torch.backends.cudnn.benchmark = True  # as in nnU-Net
    checks = {check.name: check for check in CHECKS}
    for name in names:
        print(json.dumps({"started": name}), flush=True)
        began = time.perf_counter()
        try:
            entry = checks[name].call(measurements, folder)
        except measurements.Skip as reason:
            entry = {"left_out": str(reason)}
        except Exception as error:
            entry = {"error": f"{type(error).__name__}: {error}"[-2000:], "where": traceback.format_exc()[-800:]}
        if STAND_IN in torch.cuda.get_device_name(0):
            entry = {key: value for key, value in entry.items() if "gb" in key or key in ("error", "where", "left_out")}
        print(json.dumps({"check": name, "seconds": time.perf_counter() - began, **entry}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
