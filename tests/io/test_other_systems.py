"""Features of Linux that other systems lack."""

import os
import sys
from types import SimpleNamespace

import pytest
import torch

from nnunet_hrmedseg.errors import SetupError
from nnunet_hrmedseg.io import child_processes, devices, machine


def test_free_memory_is_optional(monkeypatch, tmp_path):
    if sys.platform == "linux":
        assert machine.free_memory() > 0
    information = tmp_path / "meminfo"
    monkeypatch.setattr(machine, "MEMORY_INFORMATION", information)
    assert machine.free_memory() is None  # macOS, Windows
    information.write_text("MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:  5 kB\n")
    assert machine.free_memory() == 5 * 1024
    information.write_text("MemTotal: 9 kB\n")
    assert machine.free_memory() is None


def test_usable_cores_respect_the_affinity(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3}, raising=False)
    assert machine.usable_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.usable_cores() == 4
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.usable_cores() == 1


def test_training_is_terminated_without_process_groups(monkeypatch):
    monkeypatch.setattr(child_processes, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.delattr(os, "killpg", raising=False)
    killed = []
    child_processes.terminate_group(SimpleNamespace(kill=lambda: killed.append(True)))
    assert killed == [True]


@pytest.mark.parametrize(
    "there, chosen", [(("cuda", "mps"), "cuda"), (("cuda",), "cuda"), (("mps",), "mps"), ((), "cpu")]
)
def test_first_available_device_is_chosen(monkeypatch, there, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    assert devices.choose_device() == chosen
    assert devices.choose_device("cpu") == "cpu"
    for device in ("cuda", "mps"):
        if device in there:
            assert devices.choose_device(device) == device
        else:
            with pytest.raises(SetupError, match=f"finds no {device} device here. Leave -device out"):
                devices.choose_device(device)
