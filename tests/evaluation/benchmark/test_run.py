"""The run of `hrmedseg benchmark`: output, skipped measurements, and memory between networks."""

from __future__ import annotations

import errno
import json
import subprocess
from collections import Counter
from importlib import import_module

import pytest
import torch
from torch import nn

from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.evaluation.benchmark import run
from nnunet_hrmedseg.evaluation.benchmark.networks import CONTENDERS, OTHERS, Contender, Trainable
from nnunet_hrmedseg.evaluation.benchmark.options import BenchmarkOptions
from nnunet_hrmedseg.evaluation.benchmark.steps import Case, run_once
from nnunet_hrmedseg.plans import specs

CPU = torch.device("cpu")


@pytest.fixture
def tiny(monkeypatch):
    """Return the names of two networks that are counted and measured quickly; only the process for the peak is slow."""

    def loss(logits, target):
        return (logits.mean(1) - target.squeeze(1)).square().mean()

    def build(channels, classes, side):
        network = nn.Conv2d(channels, classes, 3, padding=1)
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        return Trainable(network, loss, optimizer)

    for name in ("tiny", "other"):
        monkeypatch.setitem(OTHERS, name, Contender(name.capitalize(), build))
    monkeypatch.setattr(run, "_resident_peak", lambda case, options: {})
    return ["tiny", "other"]


def measured(tiny, file, *options):
    """Measure the tiny networks at two sizes and return the exit status."""
    batches = ["--training_batch_sizes", "1", "--inference_batch_sizes", "1", "--repeats", "2", "-device", "cpu"]
    sizes = ["--sizes", "64", "128", "--classes", "2"]
    return main(["benchmark", "--networks", *tiny, *sizes, *batches, "-o", str(file), *options])


def test_new_folder_is_created_before_measuring(monkeypatch, tmp_path, tiny):
    file, measure = tmp_path / "new" / "folder" / "b.json", run._measure
    there = []

    def noting(*args):
        there.append(file.parent.is_dir())
        return measure(*args)

    monkeypatch.setattr(run, "_measure", noting)
    assert measured(tiny, file) == 0
    assert there == [True, True]
    assert len(json.loads(file.read_text())["rows"]) == 2 * 2 * 2


@pytest.mark.parametrize(
    "output, message", [("", "is a folder. Give the file"), ("file/b.json", "file is a file; a folder is needed")]
)
def test_invalid_output_is_rejected_before_measuring(monkeypatch, tmp_path, tiny, capsys, output, message):
    (tmp_path / "file").touch()
    monkeypatch.setattr(run, "_measure", lambda *args: pytest.fail("measured"))
    assert measured(tiny, tmp_path / output) == 1
    assert message in capsys.readouterr().err


def test_interruption_keeps_the_measured_sizes(monkeypatch, tmp_path, tiny):
    measure = run._measure

    def interrupted(names, size, classes, *args):
        if (size, classes) == (128, 3):
            raise KeyboardInterrupt
        return measure(names, size, classes, *args)

    monkeypatch.setattr(run, "_measure", interrupted)
    assert measured(tiny, tmp_path / "b.json", "--classes", "2", "3") == 130
    content = json.loads((tmp_path / "b.json").read_text())
    assert Counter((row["size"], row["classes"]) for row in content["rows"]) == {(64, 2): 4, (64, 3): 4, (128, 2): 4}
    assert "machine" in content and all(row["median_seconds"] > 0 for row in content["rows"])


@pytest.mark.parametrize("at_run", [1, 2, 3])  # the first run, and each of two timed runs
def test_network_out_of_gpu_memory_only_loses_its_row(monkeypatch, tmp_path, tiny, capsys, at_run):
    monkeypatch.setattr(run, "_time_turn", run._time_once)  # one run each
    networks, trainings = [], Counter()

    def describe_out_of_memory(trained, image, target, training, precision):
        run_once(trained, image, target, training, precision)
        networks.append(trained.network)
        trainings[trained.network] += training
        if training and trained.network is networks[0] and trainings[networks[0]] == at_run:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run, "run_once", describe_out_of_memory)
    assert measured(tiny, tmp_path / "b.json", "--sizes", "64") == 0
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    (left_out,) = [row for row in rows if "left_out" in row]
    assert (left_out["network"], left_out["training"]) == ("tiny", True)
    assert left_out["left_out"] == "out of GPU memory" and "median_seconds" not in left_out
    assert all(len(row["seconds"]) == 2 for row in rows if row is not left_out)
    assert "Tiny, training at batch 1: left out, out of GPU memory" in capsys.readouterr().out


def _allocate_too_much():
    torch.empty(2**50)


def _fail_in_numpy():
    raise MemoryError


def _fail_in_a_library():
    raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")


@pytest.mark.parametrize("fail", [_allocate_too_much, _fail_in_numpy, _fail_in_a_library])
def test_prediction_out_of_memory_only_loses_its_row(monkeypatch, tmp_path, tiny, capsys, fail):
    def describe_out_of_memory(trained, image, target, training, precision):
        if not training and len(image) == 8:
            fail()
        run_once(trained, image, target, training, precision)

    monkeypatch.setattr(run, "run_once", describe_out_of_memory)
    assert measured(tiny, tmp_path / "b.json", "--sizes", "64", "--inference_batch_sizes", "1", "8") == 0
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    left_out = [row for row in rows if "left_out" in row]
    assert [(row["network"], row["training"], row["batch_size"]) for row in left_out] == [
        ("tiny", False, 8),
        ("other", False, 8),
    ]
    assert {row["left_out"] for row in left_out} == {"out of memory"}
    assert len([row for row in rows if "median_seconds" in row]) == 4
    assert "Tiny, prediction at batch 8: left out, out of memory" in capsys.readouterr().out


def test_other_errors_are_not_treated_as_out_of_memory(monkeypatch, tmp_path, tiny):
    def broken(*_):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(run, "run_once", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        measured(tiny, tmp_path / "b.json")


def test_full_disk_keeps_the_last_results_and_prints_all(monkeypatch, tmp_path, tiny, capsys):
    file = tmp_path / "b.json"
    written = []

    def full(place, content):
        written.append(place)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        place.write_bytes(content)

    monkeypatch.setattr(run, "write_atomically", full)
    assert measured(tiny, file) == 1
    captured = capsys.readouterr()
    assert "b.json could not be written ([Errno 28] No space left on device); what was there before" in captured.err
    assert {row["size"] for row in json.loads(file.read_text())["rows"]} == {64}
    assert "\n128 x 128, 2 classes" in captured.out


@pytest.mark.parametrize("fails", [False, True])
def test_networks_leave_no_gradients_in_memory(monkeypatch, tiny, fails):
    def failing(trained, *args):
        run_once(trained, *args)
        assert all(p.grad is not None for p in trained.network.parameters())
        if fails:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run, "run_once", failing)
    trained = CONTENDERS["tiny"].build(3, 2, 64)
    options = BenchmarkOptions(channels=3, precision="nnunet")
    row = {}
    run._run_within_memory(row, lambda: run._time_once(trained, Case("tiny", 64, 2, 1, True), CPU, options))
    assert ("left_out" in row) == fails
    assert all(p.grad is None for p in trained.network.parameters())


# ---- peaks of resident memory ----------------------------------------------------------------------------------------


def peak_of(monkeypatch, done):
    """Return the result of _resident_peak if its process ends like this; None: the process must not start."""
    started = []

    def process(command, **options):
        started.append(command)
        assert done is not None, "a process was started"
        return subprocess.CompletedProcess(command, *done)

    monkeypatch.setattr(run.subprocess, "run", process)
    options = BenchmarkOptions(channels=3, precision="float32")
    peak = run._resident_peak(Case("hrmedseg", 64, 2, 4, True), options)
    return peak, started


def test_peak_is_not_measured_without_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "RESETS_PEAK", tmp_path / "clear_refs")  # macOS, Windows
    peak, started = peak_of(monkeypatch, None)
    assert not started
    assert peak == {run.NO_PEAK: f"only Linux reports it, and {tmp_path / 'clear_refs'} does not exist"}


@pytest.mark.parametrize(
    "done, message",
    [
        ((-9, "", ""), "its process was killed, most likely for memory"),
        ((-11, "", ""), "its process ended with status -11: no message"),
        ((1, "", "Traceback\nPermissionError: clear_refs\n\n"), "ended with status 1: PermissionError: clear_refs"),
        ((1, "", ""), "ended with status 1: no message"),
    ],
)
def test_reason_is_given_for_a_missing_peak(monkeypatch, tmp_path, done, message):
    monkeypatch.setattr(run, "RESETS_PEAK", tmp_path)
    peak, _ = peak_of(monkeypatch, done)
    assert list(peak) == [run.NO_PEAK] and message in peak[run.NO_PEAK]


def test_peak_is_the_last_line_of_its_process(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "RESETS_PEAK", tmp_path)
    peak, (command,) = peak_of(monkeypatch, (0, "something\n4096\n", ""))
    assert peak == {"peak_resident_bytes": 4096}
    assert Case(**json.loads(command[-3])).batch_size == 4 and command[-2:] == ["3", "float32"]


REGISTERING = """
from nnunet_hrmedseg.architectures import HRMedSeg
from nnunet_hrmedseg.plans.hrmedseg_memory import HRMedSegMemory
from nnunet_hrmedseg.plans.specs import NetworkSpec, register_network
from nnunet_hrmedseg.trainers.hrmedseg import nnUNetTrainerHRMedSeg

class nnUNetTrainerMine(nnUNetTrainerHRMedSeg):
    pass

class Mine(HRMedSeg):
    pass

register_network(NetworkSpec("Mine", Mine, 2, HRMedSegMemory(), nnUNetTrainerMine))
"""


@pytest.mark.slow
@pytest.mark.skipif(not run.RESETS_PEAK.exists(), reason="only Linux reports the peak")
def test_peak_of_a_network_that_another_module_registers(monkeypatch, tmp_path):
    (tmp_path / "my_trainer.py").write_text(REGISTERING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(specs, "NETWORKS", dict(specs.NETWORKS))
    import_module("my_trainer")
    assert specs.registering_modules() == ["my_trainer"]
    peak = run._resident_peak(Case("mine", 64, 2, 1, True), BenchmarkOptions(channels=3, precision="float32"))
    assert peak["peak_resident_bytes"] > 0


# ---- skipped measurements --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "batch_size, training, message",
    [(4, True, None), (5, True, "would take about 75 s"), (5, False, None)],  # prediction: no estimate yet
)
def test_measurements_beyond_the_time_limit_are_skipped(monkeypatch, batch_size, training, message):
    monkeypatch.setattr(run, "free_memory", lambda: None)
    row = {"kept_for_backward_bytes": 10, "parameters": 1}
    case = Case("hrmedseg", 64, 2, batch_size, training)
    assert run._reason_to_skip(case, row, {("hrmedseg", True): 15.0}, CPU, 60.0, 3) == message


@pytest.mark.parametrize(
    "device, training, free, message",
    [
        ("cpu", True, 6 * 2**30 + 16_000, None),
        ("cpu", True, 6 * 2**30 + 15_999, "would take about 6 GiB of memory"),
        ("cpu", True, None, None),  # free memory is unknown
        ("cpu", False, 4 * 5 * 64 * 64, None),
        ("cuda", True, 1, None),
        ("cuda", False, 1, None),
    ],
)
def test_measurements_beyond_the_free_memory_are_skipped(monkeypatch, device, training, free, message):
    monkeypatch.setattr(run, "free_memory", lambda: free)
    row = {"kept_for_backward_bytes": 3 * 2**30, "parameters": 1000}
    case = Case("hrmedseg", 64, 2, 1, training)
    assert run._reason_to_skip(case, row, {}, torch.device(device), 60.0, 3) == message


@pytest.mark.parametrize("free, message", [(5 * 2**30, None), (5 * 2**30 - 1, "would take more than 5 GiB of memory")])
def test_prediction_with_too_large_image_and_logits_is_skipped(monkeypatch, free, message):
    monkeypatch.setattr(run, "free_memory", lambda: free)
    case = Case("hrmedseg", 2**14, 2, 1, False)  # 3 channels and 2 classes, 1 GiB each
    assert run._reason_to_skip(case, {}, {}, CPU, 60.0, 3) == message


def test_skipped_measurements_are_not_run(monkeypatch, tmp_path, tiny):
    monkeypatch.setattr(run, "_reason_to_skip", lambda *args: "would take about 100 s")
    monkeypatch.setattr(run, "_time_once", lambda *args: pytest.fail("run"))
    assert measured(tiny, tmp_path / "b.json") == 0
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert {row["left_out"] for row in rows} == {"would take about 100 s"}
