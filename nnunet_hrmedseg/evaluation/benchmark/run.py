"""`hrmedseg benchmark`: every network in the same run, in turns, medians; one table and one JSON file.

Memory comes in two kinds. Bytes kept for the backward pass are counted, tensor by tensor, in the precision of the
device: they are the same on every machine with such a device. Peaks are what the device (CUDA) or the operating system
(CPU: resident memory, in a process of its own) saw.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nnunet_hrmedseg import __version__
from nnunet_hrmedseg.architectures.counting import multiply_accumulates, parameters
from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.evaluation.benchmark.defaults import DEFAULTS
from nnunet_hrmedseg.evaluation.benchmark.memory import saved_activation_bytes_fake
from nnunet_hrmedseg.evaluation.benchmark.networks import (
    CONTENDERS,
    DEFAULT_CONTENDERS,
    DEFAULT_CONTENDERS_3D,
    Trainable,
)
from nnunet_hrmedseg.evaluation.benchmark.report import NO_PEAK, table
from nnunet_hrmedseg.io.cpu_precision import predicts_in_bfloat16, set_cpu_precision
from nnunet_hrmedseg.io.files import make_output_dir, reporting_write_errors, write_atomically
from nnunet_hrmedseg.io.machine import free_memory, processor_name

__all__ = ["benchmark"]

RESETS_PEAK = Path("/proc/self/clear_refs")  # with it peak.py lets a peak of resident memory start anew
MAX_GRADIENT_NORM = 12  # nnU-Net's
KILLED = 9  # SIGKILL, which Windows does not name
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
"""In the messages of the RuntimeErrors of torch on the CPU (Linux, Windows) and of CUDA's libraries."""
T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """One measurement: a network at a size, with a number of classes and a batch size, in training or prediction."""

    network: str
    size: int
    classes: int
    batch_size: int
    training: bool

    def image_shape(self, channels: int) -> tuple[int, ...]:
        return self.batch_size, channels, *[self.size] * CONTENDERS[self.network].dimensions


def benchmark(args: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON file. Returns the exit status.

    The file is written anew after each size and number of classes: an interruption costs no more than the one that is
    being measured.

    Raises:
        HRMedSegError: for an unknown network, sizes that it cannot take, a device that is not there, or an output that
            cannot be written.
    """
    for name, default in DEFAULTS[args.dimensions].items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    names = args.networks or (DEFAULT_CONTENDERS if args.dimensions == 2 else DEFAULT_CONTENDERS_3D)
    _check(names, args)
    file = _output_file(Path(args.output))
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    content = {**_surroundings(device, args), "rows": []}
    for size in args.sizes:
        for classes in args.classes:
            content["rows"] += _measure(names, size, classes, device, args)
            try:
                with reporting_write_errors(file, "and repeat the command."):
                    write_atomically(file, (json.dumps(content, indent=1) + "\n").encode())
            except HRMedSegError:
                print(table(content))  # at least to be read: it may have taken an hour
                raise
    print(table(content))
    print(f"Wrote {file}")
    return 0


def _output_file(file: Path) -> Path:
    """Where the figures go. Its folder is made now: what was measured in an hour must not be lost for want of it."""
    if file.is_dir():
        raise HRMedSegError(f"-o {file} is a folder: give the file to write the figures to, such as {file / 'b.json'}.")
    make_output_dir(file.parent)
    return file


def _surroundings(device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """What the figures are of: machine, versions and settings."""
    return {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "precision": describe_precision(args.precision, device),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "versions": {"nnunet_hrmedseg": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "date": datetime.date.today().isoformat(),
        "channels": args.channels,
    }


def _check(names: list[str], args: argparse.Namespace) -> None:
    dimensions = args.dimensions
    there_are = ", ".join(name for name, row in CONTENDERS.items() if row.dimensions == dimensions)
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        raise HRMedSegError(f"There is no network {unknown[0]!r} to measure; there are {there_are}.")
    others = [name for name in names if CONTENDERS[name].dimensions != dimensions]
    if others:
        raise HRMedSegError(
            f"The network {others[0]!r} is {CONTENDERS[others[0]].dimensions}D: measure it with --dimensions "
            f"{CONTENDERS[others[0]].dimensions}. With --dimensions {dimensions} there are {there_are}."
        )
    smallest = 64 if dimensions == 2 else 16
    wrong = [size for size in args.sizes if size < smallest or size & (size - 1)]
    if wrong:
        raise HRMedSegError(
            f"--sizes {wrong[0]}: the networks halve the image up to ten times; give powers of two from {smallest}."
        )
    if args.device == "cuda" and not torch.cuda.is_available():
        raise HRMedSegError("-device cuda: torch finds no CUDA GPU here. Use -device cpu.")


def _measure(
    names: list[str], size: int, classes: int, device: torch.device, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """All rows of one size and number of classes: the networks take turns."""
    rows: dict[Case, dict[str, Any]] = {}
    networks: dict[str, Trainable] = {}
    title = f"{' x '.join([str(size)] * args.dimensions)}, {classes} classes"
    for name in tqdm(names, desc=f"{title}: counting", leave=False):
        networks[name] = CONTENDERS[name].build(args.channels, classes, size)
        rows.update(_counted(networks[name], name, size, classes, device, args))
        networks[name].network.to(device)
    if not args.count_only:
        timed = _first_round(rows, networks, title, device, args)
        _rounds(timed, rows, networks, title, device, args)
    return list(rows.values())


def _counted(
    trained: Trainable, name: str, size: int, classes: int, device: torch.device, args: argparse.Namespace
) -> dict[Case, dict[str, Any]]:
    """The rows of one network, with all that is counted and not measured. The network is on the CPU still."""
    trained.mode(training=False)
    network = trained.network
    if args.precision != "float32":
        set_cpu_precision(network)
    one_image = Case(name, size, classes, 1, False).image_shape(args.channels)
    counts = {
        "parameters": parameters(network)["total"],
        "multiply_accumulates": multiply_accumulates(network, one_image)["total"],
    }
    trainings = [Case(name, size, classes, batch_size, True) for batch_size in args.training_batch_sizes]
    predictions = [Case(name, size, classes, batch_size, False) for batch_size in args.inference_batch_sizes]
    rows: dict[Case, dict[str, Any]] = {case: {**vars(case), **counts} for case in (*trainings, *predictions)}
    shapes = [case.image_shape(args.channels) for case in trainings]
    another = CONTENDERS[name].build(args.channels, classes, size)
    kept = saved_activation_bytes_fake(another, shapes, device, partial(_autocast, device, args.precision))
    for case, of_batch in zip(trainings, kept, strict=True):
        rows[case]["kept_for_backward_bytes"] = of_batch
    return rows


def _first_round(
    rows: dict[Case, dict[str, Any]],
    networks: dict[str, Trainable],
    title: str,
    device: torch.device,
    args: argparse.Namespace,
) -> list[Case]:
    """Every case once, for the peaks of memory. Returns those that can be timed; the others' rows say why not."""
    seconds_per_image: dict[tuple[str, bool], float] = {}
    timed = []
    for case in tqdm(rows, desc=f"{title}: first round", leave=False):
        row = rows[case]
        reason = _too_much(case, row, seconds_per_image, device, args.time_limit, args.channels)
        if reason:
            row["left_out"] = reason
            continue
        first = _unless_out_of_memory(row, partial(_first, networks[case.network], case, device, args))
        if first is not None:
            peak, seconds = first
            row.update(peak)
            seconds_per_image[case.network, case.training] = seconds / case.batch_size
            timed.append(case)
    return timed


def _rounds(
    timed: list[Case],
    rows: dict[Case, dict[str, Any]],
    networks: dict[str, Trainable],
    title: str,
    device: torch.device,
    args: argparse.Namespace,
) -> None:
    """All cases in turns, as often as wanted; their rows get the seconds of each turn, and the median."""
    times: dict[Case, list[float]] = {case: [] for case in timed}
    for _ in tqdm(range(args.repeats), desc=f"{title}: timing", leave=False):
        for case in list(times):
            turn = partial(_turn, networks[case.network], case, device, args)
            seconds = _unless_out_of_memory(rows[case], turn)
            if seconds is None:
                del times[case]
            else:
                times[case].append(seconds)
    for case, of_case in times.items():
        rows[case]["seconds"] = of_case
        rows[case]["median_seconds"] = statistics.median(of_case)


def _unless_out_of_memory(row: dict[str, Any], run: Callable[[], T]) -> T | None:
    """Return the result of `run`, or None where the memory was not enough, with the reason in `row`."""
    try:
        return run()
    except (RuntimeError, MemoryError) as error:
        on_gpu = isinstance(error, torch.cuda.OutOfMemoryError)
        if not (on_gpu or isinstance(error, MemoryError) or any(text in str(error) for text in NO_MEMORY)):
            raise
        row["left_out"] = "out of GPU memory" if on_gpu else "out of memory"
    # not above: until it is handled, the error holds the tensors of the frames that it left
    torch.cuda.empty_cache()
    return None


def _too_much(
    case: Case,
    row: dict[str, Any],
    seconds_per_image: dict[tuple[str, bool], float],
    device: torch.device,
    time_limit: float,
    channels: int,
) -> str | None:
    """Why this measurement is better left out, or None."""
    expected = seconds_per_image.get((case.network, case.training), 0.0) * case.batch_size
    if expected > time_limit:
        return f"would take about {expected:.0f} s"
    if device.type == "cpu" and case.training:
        # gradients of what is kept come and go; twice is a safe guess
        needed = 2 * row["kept_for_backward_bytes"] + 16 * row["parameters"]
        if needed > (free_memory() or needed):
            return f"would take about {needed / 2**30:.0f} GiB of memory"
    if device.type == "cpu" and not case.training:
        # image and logits in float32, of which none can be spared: what is killed for memory takes all figures along
        needed = 4 * math.prod(case.image_shape(channels + case.classes))
        if needed > (free_memory() or needed):
            return f"would take more than {needed / 2**30:.0f} GiB of memory"
    return None


def _first(
    trained: Trainable, case: Case, device: torch.device, args: argparse.Namespace
) -> tuple[dict[str, Any], float]:
    """A first run, for the caches and the peak of memory: the figures of the peak, and seconds."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _timed(trained, case, device, args)
        peak = {
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(device),
            "peak_allocated_beyond_weights_bytes": torch.cuda.max_memory_allocated(device) - before,
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(device),
        }
        return peak, _timed(trained, case, device, args)
    seconds = _timed(trained, case, device, args)
    return (_resident_peak(case, args) if case.training else {}), seconds


def _resident_peak(case: Case, args: argparse.Namespace) -> dict[str, int | str]:
    """The peak of resident memory of one training step, in a process of its own, or why there is none."""
    if not RESETS_PEAK.exists():
        return {NO_PEAK: f"only Linux tells it, and {RESETS_PEAK} is not here"}
    command = [
        sys.executable,
        "-m",
        "nnunet_hrmedseg.evaluation.benchmark.peak",
        json.dumps(vars(case)),
        str(args.channels),
    ]
    done = subprocess.run([*command, args.precision], capture_output=True, text=True)
    if done.returncode == -KILLED:
        return {NO_PEAK: "its process was killed, most likely for memory"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {NO_PEAK: f"its process ended with status {done.returncode}: {last}"}
    return {"peak_resident_bytes": int(done.stdout.split()[-1])}


def _turn(trained: Trainable, case: Case, device: torch.device, args: argparse.Namespace) -> float:
    """Seconds of one run, the median of up to five where they are short: to a short run it matters what the caches and
    the allocator held before, which was another network's; to a long one it does not.
    """
    seconds = [_timed(trained, case, device, args)]
    while sum(seconds) < 1 and len(seconds) < 5:
        seconds.append(_timed(trained, case, device, args))
    return statistics.median(seconds)


def _timed(trained: Trainable, case: Case, device: torch.device, args: argparse.Namespace) -> float:
    """Seconds of one training step (forward, loss, backward, optimiser) or one prediction."""
    image, target = random_batch(case.image_shape(args.channels), case.classes, device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    try:
        run_once(trained, image, target, case.training, args.precision)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start
    finally:
        # the memory is the next network's; after an error, too
        trained.optimizer.zero_grad(set_to_none=True)


def random_batch(image_shape: Sequence[int], classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """An image of this shape (B, C, H, W) or (B, C, Z, Y, X), and labels for it."""
    images, _, *size = image_shape
    image = torch.randn(*image_shape, device=device)
    return image, torch.randint(0, classes, (images, 1, *size), dtype=torch.int16, device=device)


def run_once(trained: Trainable, image: Tensor, target: Tensor, training: bool, precision: str) -> None:
    """One training step or one prediction, in nnU-Net's way."""
    trained.mode(training=training)
    with torch.set_grad_enabled(training), _autocast(image.device, precision):
        if not training:
            trained.network(image)
            return
        loss = trained.loss(trained.network(image), target)
    trained.optimizer.zero_grad(set_to_none=True)
    if precision != "nnunet" or image.device.type != "cuda":
        loss.backward()
        trained.optimizer.step()
        return
    scaler = torch.amp.GradScaler("cuda")
    scaler.scale(loss).backward()
    scaler.unscale_(trained.optimizer)
    nn.utils.clip_grad_norm_(trained.network.parameters(), MAX_GRADIENT_NORM)
    scaler.step(trained.optimizer)
    scaler.update()


def describe_precision(wanted: str, device: torch.device) -> str:
    """What was measured, in words: what "nnunet" comes to depends on the machine."""
    if wanted != "nnunet":
        return wanted
    if device.type == "cuda":
        return "mixed precision (fp16), not compiled"
    return "float32" + (", predictions of HRMedSeg and HER-Seg in bfloat16" if predicts_in_bfloat16() else "")


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    if precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    if precision == "nnunet" and device.type == "cuda":
        return torch.autocast("cuda", torch.float16)
    return nullcontext()
