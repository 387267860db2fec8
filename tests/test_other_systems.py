"""What Linux has and other systems lack."""

import os
import sys
from types import SimpleNamespace

from nnunet_hrmedseg import machine
from nnunet_hrmedseg.comparison import train


def test_free_memory(monkeypatch):
    if sys.platform == "linux":
        assert machine.free_memory() > 0

    def of_macos(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", of_macos, raising=False)
    assert machine.free_memory() is None
    monkeypatch.delattr(os, "sysconf")
    assert machine.free_memory() is None


def test_usable_cores(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert machine.usable_cores() == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.usable_cores() == 1


def test_a_training_is_ended_without_process_groups(monkeypatch):
    monkeypatch.setattr(train, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.delattr(os, "killpg", raising=False)
    killed = []
    train._end(SimpleNamespace(kill=lambda: killed.append(True)))
    assert killed == [True]
