"""Measure networks in turns in one run: medians of times, and two kinds of memory.

Bytes saved for the backward pass are counted, tensor by tensor, in the precision of the device: they are the same on
every machine with such a device. Peaks are measured by the device (CUDA) or by the operating system (CPU: resident
memory of a separate process).
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from nnunet_hrmedseg import __version__
from nnunet_hrmedseg.architectures.counting import multiply_accumulates, parameters
from nnunet_hrmedseg.errors import HRMedSegError, PlanError, SetupError
from nnunet_hrmedseg.evaluation.benchmark.memory import saved_activation_bytes_fake
from nnunet_hrmedseg.evaluation.benchmark.networks import (
    CONTENDERS,
    DEFAULT_CONTENDERS,
    DEFAULT_CONTENDERS_3D,
    Trainable,
)
from nnunet_hrmedseg.evaluation.benchmark.options import BenchmarkOptions
from nnunet_hrmedseg.evaluation.benchmark.report import NO_PEAK, table
from nnunet_hrmedseg.evaluation.benchmark.steps import (
    Case,
    autocast,
    describe_precision,
    random_batch,
    run_once,
    synchronize,
)
from nnunet_hrmedseg.io.cpu_precision import set_cpu_precision
from nnunet_hrmedseg.io.devices import choose_device
from nnunet_hrmedseg.io.files import make_output_dir, reporting_write_errors, write_atomically
from nnunet_hrmedseg.io.machine import free_memory, processor_name
from nnunet_hrmedseg.plans.specs import registering_modules

__all__ = ["BenchmarkResult", "benchmark_networks"]

RESETS_PEAK = Path("/proc/self/clear_refs")  # with which peak.py resets the peak of resident memory
KILLED = 9  # SIGKILL, which Windows does not name
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
"""Texts in the RuntimeErrors of torch on the CPU (Linux, Windows) and of CUDA's libraries."""
T = TypeVar("T")


@dataclass(frozen=True)
class BenchmarkResult:
    """What `benchmark_networks` measured.

    Attributes:
        content: machine, versions and settings, and under "rows" a dictionary for each network, size, number of
            classes and batch size, in training and prediction. Times are in seconds, memory is in bytes.
        file: the JSON file with this content, if one was written.
    """

    content: dict[str, Any]
    file: Path | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The measurements."""
        return self.content["rows"]

    def table(self) -> str:
        """Return a table for each size and number of classes, in Markdown."""
        return table(self.content)


def benchmark_networks(
    networks: Sequence[str] | None = None,
    *,
    options: BenchmarkOptions | None = None,
    device: str | None = None,
    output: str | os.PathLike[str] | None = None,
) -> BenchmarkResult:
    """Measure memory and speed of networks in turns on this machine, with random images.

    Args:
        networks: names from `CONTENDERS` in evaluation/benchmark/networks.py. Default: HRMedSeg, HER-Seg and the
            networks that nnU-Net plans for images of the same size.
        options: sizes, batch sizes, precision and so on.
        device: "cuda", "mps" or "cpu". Default: the first of these that is available.
        output: JSON file, which is replaced. It is written after each size and number of classes, so that an
            interruption loses only the size in progress.

    Raises:
        PlanError: an unknown network, or sizes that it cannot take.
        SetupError: a device that is not available, or an output that cannot be written.

    Examples:
        >>> from nnunet_hrmedseg import BenchmarkOptions, benchmark_networks
        >>> options = BenchmarkOptions(sizes=[64], classes=[2], training_batch_sizes=[1], count_only=True)
        >>> result = benchmark_networks(["hrmedseg"], options=options, device="cpu")
        >>> sorted({row["parameters"] for row in result.rows})
        [3240016]
    """
    options = (options or BenchmarkOptions()).resolve()
    names = list(networks or (DEFAULT_CONTENDERS if options.dimensions == 2 else DEFAULT_CONTENDERS_3D))
    _check_networks(names, options.dimensions)
    torch_device = torch.device(choose_device(device))
    file = None if output is None else _output_file(Path(output))
    content = {**_describe_conditions(torch_device, options), "rows": []}
    for size in options.sizes or ():
        for classes in options.classes:
            content["rows"] += _measure(names, size, classes, torch_device, options)
            if file is not None:
                _write(file, content)
    return BenchmarkResult(content, file)


def _write(file: Path, content: dict[str, Any]) -> None:
    try:
        with reporting_write_errors(file, "and repeat the command."):
            write_atomically(file, (json.dumps(content, indent=1) + "\n").encode())
    except HRMedSegError:
        print(table(content))  # the measurement may have taken an hour
        raise


def _output_file(file: Path) -> Path:
    """Return the output file. Its folder is made before the measurement, whose results would be lost without it."""
    if file.is_dir():
        raise SetupError(f"-o {file} is a folder. Give the file to write, such as {file / 'benchmark.json'}.")
    make_output_dir(file.parent)
    return file


def _describe_conditions(device: torch.device, options: BenchmarkOptions) -> dict[str, Any]:
    """Return machine, versions and settings of the measurement."""
    return {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "precision": describe_precision(options.precision, device),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "versions": {"nnunet_hrmedseg": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "date": datetime.date.today().isoformat(),
        "channels": options.channels,
    }


def _check_networks(names: Sequence[str], dimensions: int) -> None:
    available = ", ".join(name for name, row in CONTENDERS.items() if row.dimensions == dimensions)
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        raise PlanError(f"Unknown network {unknown[0]!r}. Available networks: {available}.")
    others = [name for name in names if CONTENDERS[name].dimensions != dimensions]
    if others:
        own = CONTENDERS[others[0]].dimensions
        raise PlanError(
            f"The network {others[0]!r} is {own}D: measure it with --dimensions {own}. Networks for --dimensions "
            f"{dimensions}: {available}."
        )


def _measure(
    names: list[str], size: int, classes: int, device: torch.device, options: BenchmarkOptions
) -> list[dict[str, Any]]:
    """Return all rows of one size and number of classes. The networks take turns."""
    rows: dict[Case, dict[str, Any]] = {}
    networks: dict[str, Trainable] = {}
    title = f"{' x '.join([str(size)] * options.dimensions)}, {classes} classes"
    for name in tqdm(names, desc=f"{title}: counting", leave=False):
        networks[name] = CONTENDERS[name].build(options.channels, classes, size)
        rows.update(_count(networks[name], name, size, classes, device, options))
        networks[name].network.to(device)
    if not options.count_only:
        timed = _run_first_round(rows, networks, title, device, options)
        _run_rounds(timed, rows, networks, title, device, options)
    return list(rows.values())


def _count(
    trained: Trainable, name: str, size: int, classes: int, device: torch.device, options: BenchmarkOptions
) -> dict[Case, dict[str, Any]]:
    """Return the rows of one network with the figures that are counted. The network is on the CPU."""
    trained.mode(training=False)
    network = trained.network
    if options.precision != "float32":
        set_cpu_precision(network)
    one_image = Case(name, size, classes, 1, False).image_shape(options.channels)
    counts = {
        "parameters": parameters(network)["total"],
        "multiply_accumulates": multiply_accumulates(network, one_image)["total"],
    }
    trainings = [Case(name, size, classes, batch_size, True) for batch_size in options.training_batch_sizes or ()]
    predictions = [Case(name, size, classes, batch_size, False) for batch_size in options.inference_batch_sizes or ()]
    rows: dict[Case, dict[str, Any]] = {case: {**vars(case), **counts} for case in (*trainings, *predictions)}
    shapes = [case.image_shape(options.channels) for case in trainings]
    another = CONTENDERS[name].build(options.channels, classes, size)
    # MPS computes in float32, as the CPU does
    counted_on = torch.device("cpu") if device.type == "mps" else device
    saved = saved_activation_bytes_fake(another, shapes, counted_on, partial(autocast, device, options.precision))
    for case, saved_bytes in zip(trainings, saved, strict=True):
        rows[case]["kept_for_backward_bytes"] = saved_bytes
    return rows


def _run_first_round(
    rows: dict[Case, dict[str, Any]],
    networks: dict[str, Trainable],
    title: str,
    device: torch.device,
    options: BenchmarkOptions,
) -> list[Case]:
    """Run every case once for its peak of memory. Return those that can be timed; other rows get the reason."""
    seconds_per_image: dict[tuple[str, bool], float] = {}
    timed = []
    for case in tqdm(rows, desc=f"{title}: first round", leave=False):
        row = rows[case]
        reason = _reason_to_skip(case, row, seconds_per_image, device, options.time_limit, options.channels)
        if reason:
            row["left_out"] = reason
            continue
        first = _run_within_memory(row, partial(_run_first, networks[case.network], case, device, options))
        if first is not None:
            peak, seconds = first
            row.update(peak)
            seconds_per_image[case.network, case.training] = seconds / case.batch_size
            timed.append(case)
    return timed


def _run_rounds(
    timed: list[Case],
    rows: dict[Case, dict[str, Any]],
    networks: dict[str, Trainable],
    title: str,
    device: torch.device,
    options: BenchmarkOptions,
) -> None:
    """Run all cases in turns, `repeats` times. Their rows get the seconds of each turn and the median."""
    times: dict[Case, list[float]] = {case: [] for case in timed}
    for _ in tqdm(range(options.repeats), desc=f"{title}: timing", leave=False):
        for case in list(times):
            turn = partial(_time_turn, networks[case.network], case, device, options)
            seconds = _run_within_memory(rows[case], turn)
            if seconds is None:
                del times[case]
            else:
                times[case].append(seconds)
    for case, of_turns in times.items():
        rows[case]["seconds"] = of_turns
        rows[case]["median_seconds"] = statistics.median(of_turns)


def _run_within_memory(row: dict[str, Any], run: Callable[[], T]) -> T | None:
    """Return the result of `run`, or None if memory did not suffice, with the reason in `row`."""
    try:
        return run()
    except (RuntimeError, MemoryError) as error:
        on_gpu = isinstance(error, torch.cuda.OutOfMemoryError)
        if not (on_gpu or isinstance(error, MemoryError) or any(text in str(error) for text in NO_MEMORY)):
            raise
        row["left_out"] = "out of GPU memory" if on_gpu else "out of memory"
    # after the except block: until then, the error holds the tensors of its frames
    torch.cuda.empty_cache()
    return None


def _reason_to_skip(
    case: Case,
    row: dict[str, Any],
    seconds_per_image: dict[tuple[str, bool], float],
    device: torch.device,
    time_limit: float,
    channels: int,
) -> str | None:
    """Return why this measurement should be left out, or None."""
    expected = seconds_per_image.get((case.network, case.training), 0.0) * case.batch_size
    if expected > time_limit:
        return f"would take about {expected:.0f} s"
    if device.type == "cpu" and case.training:
        # gradients of the saved tensors are temporary; twice is a safe estimate
        needed = 2 * row["kept_for_backward_bytes"] + 16 * row["parameters"]
        if needed > (free_memory() or needed):
            return f"would take about {needed / 2**30:.0f} GiB of memory"
    if device.type == "cpu" and not case.training:
        # image and logits in float32 at least: a process killed for memory would lose all results
        needed = 4 * math.prod(case.image_shape(channels + case.classes))
        if needed > (free_memory() or needed):
            return f"would take more than {needed / 2**30:.0f} GiB of memory"
    return None


def _run_first(
    trained: Trainable, case: Case, device: torch.device, options: BenchmarkOptions
) -> tuple[dict[str, Any], float]:
    """Run for the first time, for caches and the peak of memory. Return the peak, and the seconds of a run."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _time_once(trained, case, device, options)
        peak = {
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(device),
            "peak_allocated_beyond_weights_bytes": torch.cuda.max_memory_allocated(device) - before,
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(device),
        }
        return peak, _time_once(trained, case, device, options)
    seconds = _time_once(trained, case, device, options)
    return (_resident_peak(case, options) if case.training else {}), seconds


def _resident_peak(case: Case, options: BenchmarkOptions) -> dict[str, int | str]:
    """Return the peak of resident memory of one training step in a separate process, or why there is none."""
    if not RESETS_PEAK.exists():
        return {NO_PEAK: f"only Linux reports it, and {RESETS_PEAK} does not exist"}
    command = [
        sys.executable,
        "-m",
        "nnunet_hrmedseg.evaluation.benchmark.peak",
        json.dumps(vars(case)),
        str(options.channels),
        options.precision,
        *registering_modules(),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode == -KILLED:
        return {NO_PEAK: "its process was killed, most likely for memory"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {NO_PEAK: f"its process ended with status {done.returncode}: {last}"}
    return {"peak_resident_bytes": int(done.stdout.split()[-1])}


def _time_turn(trained: Trainable, case: Case, device: torch.device, options: BenchmarkOptions) -> float:
    """Return the seconds of one run: the median of up to five short runs.

    A short run depends on what caches and allocator held before, for another network. A long run does not.
    """
    seconds = [_time_once(trained, case, device, options)]
    while sum(seconds) < 1 and len(seconds) < 5:
        seconds.append(_time_once(trained, case, device, options))
    return statistics.median(seconds)


def _time_once(trained: Trainable, case: Case, device: torch.device, options: BenchmarkOptions) -> float:
    """Return the seconds of one training step (forward, loss, backward, optimizer) or one prediction."""
    image, target = random_batch(case.image_shape(options.channels), case.classes, device)
    synchronize(device)
    start = time.perf_counter()
    try:
        run_once(trained, image, target, case.training, options.precision)
        synchronize(device)
        return time.perf_counter() - start
    finally:
        # frees the memory for the next network, also after an error
        trained.optimizer.zero_grad(set_to_none=True)
