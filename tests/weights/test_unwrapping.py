import pytest
import torch

from nnunet_hrmedseg.weights.unwrapping import unwrap

STATE = {"image_encoder.a": torch.ones(2), "neck.b": torch.zeros(3)}


def prefixed(prefix):
    return {prefix + name: value for name, value in STATE.items()}


@pytest.mark.parametrize(
    "checkpoint",
    [
        STATE,
        prefixed("module."),
        prefixed("module._orig_mod."),
        {"model": STATE, "optimizer": {"state": {}}, "epoch": 3},
        {"state_dict": prefixed("model."), "pytorch-lightning_version": "2.0"},
        {"model_state_dict": prefixed("module.")},
        {"model": {"state_dict": STATE}},
        {**STATE, "epoch": 3, "config": {"width": 96}},
    ],
    ids=["plain", "parallel", "compiled", "model", "lightning", "model_state_dict", "nested", "with other entries"],
)
def test_the_state_dict_is_found(checkpoint):
    found = unwrap(checkpoint)
    assert found.keys() == STATE.keys()
    assert all(found[name] is value for name, value in STATE.items())


def test_a_prefix_that_only_some_names_have_stays():
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert unwrap(state) == state


@pytest.mark.parametrize("checkpoint", [{}, {"epoch": 1}, {"model": 3}, {"model": {}}, {1: torch.ones(1)}])
def test_without_tensors_nothing_is_found(checkpoint):
    assert unwrap(checkpoint) == {}


def test_endless_nesting_ends():
    checkpoint: dict = {}
    checkpoint["model"] = checkpoint
    assert unwrap(checkpoint) == {}
