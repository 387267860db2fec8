import pytest
import torch

from nnunet_hrmedseg.errors import CheckpointError
from nnunet_hrmedseg.weights.unwrapping import unwrap

STATE = {"image_encoder.a": torch.ones(2), "neck.b": torch.zeros(3)}


def prefixed(prefix):
    return {prefix + name: value for name, value in STATE.items()}


def unwrapped(checkpoint, tmp_path):
    state, _ = unwrap(tmp_path / "x.pth", checkpoint, ["image_encoder.a"], "network")
    return state


@pytest.mark.parametrize(
    "checkpoint",
    [
        STATE,
        prefixed("module."),
        prefixed("module._orig_mod."),
        {"model": STATE, "optimizer": {"state": {}}, "epoch": 3},
        {"state_dict": prefixed("model."), "pytorch-lightning_version": "2.0"},
        {"state_dict": {**prefixed("model."), "criterion.weight": torch.ones(1)}},
        {"model_state_dict": prefixed("module.")},
        {"model": {"state_dict": STATE}},
    ],
    ids=["plain", "parallel", "compiled", "model", "lightning", "other weights", "model_state_dict", "nested"],
)
def test_state_dict_is_found(checkpoint, tmp_path):
    found = unwrapped(checkpoint, tmp_path)
    assert found.keys() == STATE.keys()
    assert all(found[name] is value for name, value in STATE.items())


def test_note_contains_keys_and_prefix(tmp_path):
    checkpoint = {"model": {"state_dict": prefixed("module.")}}
    _, note = unwrap(tmp_path / "x.pth", checkpoint, ["image_encoder.a"], "SAM")
    assert note == (
        f"The weights of SAM in {tmp_path / 'x.pth'} are under model / state_dict, with 'module.' before each name."
    )
    assert unwrap(tmp_path / "x.pth", STATE, ["image_encoder.a"], "SAM")[1] == ""


def test_entries_that_are_not_tensors_are_skipped(tmp_path):
    assert unwrapped({**STATE, "epoch": 3, "config": {"width": 96}}, tmp_path).keys() == STATE.keys()


def test_checkpoint_without_the_network_is_unchanged(tmp_path):
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert unwrapped(state, tmp_path) == state


def test_several_networks_are_rejected(tmp_path):
    with pytest.raises(CheckpointError, match="student., teacher."):
        unwrapped({"model": {**prefixed("student."), **prefixed("teacher.")}}, tmp_path)


@pytest.mark.parametrize("checkpoint", [{}, {"epoch": 1}, {"model": 3}, {"model": {}}, {1: torch.ones(1)}])
def test_checkpoint_without_tensors_gives_nothing(checkpoint, tmp_path):
    assert unwrapped(checkpoint, tmp_path) == {}


def test_endless_nesting_is_handled(tmp_path):
    checkpoint: dict = {}
    checkpoint["model"] = checkpoint
    assert unwrapped(checkpoint, tmp_path) == {}
