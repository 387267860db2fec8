"""scripts/gpu_check.py without a GPU: what it makes of results, crashes, too little memory and too little time."""

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
    """Return a function that supervises a child which pretends to run checks; it gives (status, lines by check)."""

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


def test_every_check_has_a_name_of_its_own(gpu_check):
    names = [check.name for check in gpu_check.CHECKS]
    assert len(set(names)) == len(names) > 25
    assert all(check.seconds > 0 for check in gpu_check.CHECKS)
    # the most important come first, and fit into the time together
    assert [name.split()[0] for name in names[:5]] == ["parity"] * 4 + ["train"]


def test_results_are_passed_on_rounded(run):
    status, lines = run("one", "two")
    assert status == 0 and list(lines) == ["one", "two"]
    assert lines["one"]["seconds"] == 0.1235 and lines["one"]["gb"] == 2


def test_an_exceeded_limit_is_a_fault(run):
    status, lines = run("one", limits={"gb": 1.5})
    assert status == 1 and lines["one"]["fault"] == "gb above 1.5"
    assert run("one", limits={"gb": 2.5})[0] == 0


def test_a_failed_check_is_a_fault(run):
    status, lines = run("fails", "two")
    assert status == 1 and lines["fails"]["error"] == "E" and "gb" in lines["two"]


def test_a_check_that_ends_its_process_costs_no_other(run):
    status, lines = run("one", "dies", "three")
    assert status == 1 and lines["dies"]["error"] == "the process ended with status 9"
    assert "gb" in lines["one"] and "gb" in lines["three"]


def test_what_is_not_finished_in_time_is_listed(run):
    began = time.monotonic()
    status, lines = run("one", "hangs", "three", seconds=2)
    assert time.monotonic() - began < 20 and status == 0
    assert "gb" in lines["one"]
    assert lines["hangs"]["left_out"] == "it was not finished when the time was over"
    assert "the time does not suffice" in lines["three"]["left_out"]


def test_checks_that_take_too_long_are_not_begun(run):
    status, lines = run("one", seconds=0.0)
    assert status == 0 and "the time does not suffice" in lines["one"]["left_out"]


def test_a_gpu_with_too_little_memory(gpu_check, tmp_path):
    lines = gpu_check.Lines(tmp_path / "checks.jsonl")
    assert gpu_check.too_large(gpu_check.Check("large", lambda *_: {}, gb=30), 11.0, lines)
    assert not gpu_check.too_large(gpu_check.Check("small", lambda *_: {}, gb=3), 11.0, lines)
    (line,) = (json.loads(text) for text in (tmp_path / "checks.jsonl").read_text().splitlines())
    assert line["left_out"] == "it takes about 30 GB, the GPU has 11.0 GB" and lines.faults == 0


def test_without_a_gpu_the_reason_is_reported(gpu_check, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.version, "cuda", None)
    file = tmp_path / "checks.jsonl"
    assert gpu_check.supervise(gpu_check.CHECKS, file, time.monotonic() + 10) == 2
    line = json.loads(file.read_text())
    assert line["check"] == "machine" and "built without CUDA" in line["error"] and "processor" in line
    assert json.loads(capsys.readouterr().out) == line


def test_what_is_not_installed_is_reported(gpu_check, monkeypatch):
    assert gpu_check.missing_requirements() == []
    installed = gpu_check.installed
    monkeypatch.setattr(gpu_check, "installed", lambda name: name not in ("blosc2", "nnunetv2") and installed(name))
    assert [name.split(">")[0] for name in gpu_check.missing_requirements()] == ["nnunetv2<3,"]
    monkeypatch.setattr(gpu_check, "installed", lambda name: name != "blosc2" and installed(name))
    assert [name[:6] for name in gpu_check.missing_requirements()] == ["blosc2"]


def test_trainers_that_nnunet_does_not_find_are_reported(gpu_check, monkeypatch):
    from nnunet_hrmedseg.doctor.lookup_modules import LookupModule

    monkeypatch.setattr(LookupModule, "present", False)
    assert "nnunet_hrmedseg.cli link" in gpu_check.machine()[1]
