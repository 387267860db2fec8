"""CUDA graphs: calls of torch.compile, without a GPU; benchmarks/gpu_counts.py counts the launches."""

import pytest
import torch

from nnunet_hrmedseg.trainers.hrmedseg import nnUNetTrainerHRMedSeg
from tests.trainers.conftest import LABELS
from tests.trainers.tiny_trainers import _trainer


@pytest.fixture
def calls(monkeypatch):
    """Record the modes of torch.compile, without compiling, and the marked starts of iterations."""
    found = {"modes": [], "steps": 0}

    def record_mode(function, mode=None, **_):
        found["modes"].append(mode)
        return function

    def record_step():
        found["steps"] += 1

    monkeypatch.setattr(torch, "compile", record_mode)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", record_step)
    monkeypatch.setattr(nnUNetTrainerHRMedSeg, "_do_i_compile", lambda self: True)
    return found


def train_two_steps(description):
    trainer = _trainer(description)
    trainer.num_iterations_per_epoch = 2
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))
    trainer.progress.close()
    return trainer


def test_network_and_loss_are_captured_and_each_iteration_is_marked(dataset, calls, monkeypatch):
    # the device is the CPU here
    monkeypatch.setattr(nnUNetTrainerHRMedSeg, "replays_graphs", True)
    train_two_steps(dataset(LABELS))
    assert calls["modes"].count("reduce-overhead") == 2 and calls["steps"] == 2


def test_nothing_is_captured_without_cuda(dataset, calls, monkeypatch):
    monkeypatch.setattr(nnUNetTrainerHRMedSeg, "cuda_graphs", True)
    trainer = train_two_steps(dataset(LABELS))
    assert not trainer.replays_graphs
    assert calls["modes"] and "reduce-overhead" not in calls["modes"] and calls["steps"] == 0
