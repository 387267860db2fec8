"""scripts/gpu_check.py without a GPU: results, crashes, too little memory and too little time."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"

CHILD = """
import json, os, sys, time
for name in json.loads(sys.argv[1]):
    print(json.dumps({"started": name}), flush=True)
    print("a line of somebody else", flush=True)
    if name == "dies":
        os._exit(9)
    if name == "hangs":
        time.sleep(60)
    error = {"error": "E"} if name == "fails" else {}
    print(json.dumps({"check": name, "seconds": 0.123456, "gb": 2.0, **error}), flush=True)
"""


@pytest.fixture
def gpu_check(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    path = list(sys.path)
    import gpu_check

    yield gpu_check
    sys.path[:] = path


@pytest.fixture
def run(gpu_check, monkeypatch, tmp_path):
    """Return a function that supervises a child process with fake checks and returns (status, lines by check)."""

    def supervise(*names, seconds=30.0, gb=80.0, **options):
        checks = [gpu_check.Check(name, lambda *_: {}, seconds=0.0, **options) for name in names]
        monkeypatch.setattr(gpu_check, "machine", lambda: ({"memory_gb": gb}, None))
        command = [sys.executable, "-S", "-c", CHILD]
        monkeypatch.setattr(gpu_check, "child_command", lambda chosen, folder: [*command, json.dumps(chosen)])
        output = tmp_path / "out" / "checks.jsonl"
        status = gpu_check.supervise(checks, output, time.monotonic() + seconds)
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        assert lines[0]["check"] == "machine"
        return status, {line["check"]: line for line in lines[1:]}

    return supervise


def test_names_of_checks_are_unique(gpu_check):
    names = [check.name for check in gpu_check.CHECKS]
    assert len(set(names)) == len(names) > 25
    assert all(check.seconds > 0 for check in gpu_check.CHECKS)
    # the most important checks run first, and their total time fits
    assert [name.split()[0] for name in names[:5]] == ["parity"] * 4 + ["train"]


def test_results_are_rounded(run):
    status, lines = run("one", "two")
    assert status == 0 and list(lines) == ["one", "two"]
    assert lines["one"]["seconds"] == 0.1235 and lines["one"]["gb"] == 2


def test_exceeded_limit_is_a_failure(run):
    status, lines = run("one", limits={"gb": 1.5})
    assert status == 1 and lines["one"]["fault"] == "gb above 1.5"
    assert run("one", limits={"gb": 2.5})[0] == 0


def test_failed_check_is_a_failure(run):
    status, lines = run("fails", "two")
    assert status == 1 and lines["fails"]["error"] == "E" and "gb" in lines["two"]


def test_crashing_check_does_not_affect_the_others(run):
    status, lines = run("one", "dies", "three")
    assert status == 1 and lines["dies"]["error"] == "the process ended with status 9"
    assert "gb" in lines["one"] and "gb" in lines["three"]


@pytest.mark.slow
def test_unfinished_checks_are_listed(run):
    began = time.monotonic()
    status, lines = run("one", "hangs", "three", seconds=2)
    assert time.monotonic() - began < 20 and status == 0
    assert "gb" in lines["one"]
    assert lines["hangs"]["left_out"] == "not finished within the time"
    assert "not enough time" in lines["three"]["left_out"]


def test_checks_that_take_too_long_are_not_started(run):
    status, lines = run("one", seconds=0.0)
    assert status == 0 and "not enough time" in lines["one"]["left_out"]


def test_gpu_with_too_little_memory(gpu_check, tmp_path):
    lines = gpu_check.Lines(tmp_path / "checks.jsonl")
    assert gpu_check.too_large(gpu_check.Check("large", lambda *_: {}, gb=30), 11.0, lines)
    assert not gpu_check.too_large(gpu_check.Check("small", lambda *_: {}, gb=3), 11.0, lines)
    (line,) = (json.loads(text) for text in (tmp_path / "checks.jsonl").read_text().splitlines())
    assert line["left_out"] == "it takes about 30 GB, the GPU has 11.0 GB" and lines.faults == 0


def test_reason_is_reported_without_a_gpu(gpu_check, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.version, "cuda", None)
    file = tmp_path / "checks.jsonl"
    assert gpu_check.supervise(gpu_check.CHECKS, file, time.monotonic() + 10) == 2
    line = json.loads(file.read_text())
    assert line["check"] == "machine" and "built without CUDA" in line["error"] and "processor" in line
    assert json.loads(capsys.readouterr().out) == line


def test_missing_packages_are_reported(gpu_check, monkeypatch):
    assert gpu_check.missing_requirements() == []
    installed = gpu_check.installed
    monkeypatch.setattr(gpu_check, "installed", lambda name: name not in ("blosc2", "nnunetv2") and installed(name))
    assert [name.split(">")[0] for name in gpu_check.missing_requirements()] == ["nnunetv2<3,"]
    monkeypatch.setattr(gpu_check, "installed", lambda name: name != "blosc2" and installed(name))
    assert [name[:6] for name in gpu_check.missing_requirements()] == ["blosc2"]


def test_trainers_missing_in_nnunet_are_reported(gpu_check, monkeypatch):
    from nnunet_hrmedseg.doctor.lookup_modules import LookupModule

    monkeypatch.setattr(LookupModule, "present", False)
    assert "nnunet_hrmedseg.cli link" in gpu_check.machine()[1]
