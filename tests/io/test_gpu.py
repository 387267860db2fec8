"""Messages for GPUs that torch cannot use or that have too little memory."""

from __future__ import annotations

import pytest
import torch

from nnunet_hrmedseg.errors import SetupError
from nnunet_hrmedseg.io import devices

CUDA = torch.device("cuda", 0)
GB = 10**9


@pytest.fixture
def machine(monkeypatch):
    """Return a function that simulates an old, new, absent ... GPU."""

    def simulate(*, cuda="13.0", error=None, capability=(9, 0), kernels=("sm_75", "sm_80", "sm_90")):
        def init():
            if error is not None:
                raise RuntimeError(error)

        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "init", init)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(kernels))

    return simulate


def test_usable_gpu_is_accepted(machine):
    machine()
    devices.check_gpu(CUDA)
    assert devices.gpu_limitations((9, 0)) == []


@pytest.mark.parametrize(
    ("simulated", "message"),
    [
        ({"cuda": None}, "was built without CUDA"),
        ({"error": "Found no NVIDIA driver on your system. Please check"}, "No NVIDIA driver was found"),
        (
            {"error": "The NVIDIA driver on your system is too old (found version 11040). Please update"},
            r"too old \(it supports CUDA 11.4\) for torch .* built for CUDA 13.0. Update the driver",
        ),
        ({"error": "No CUDA GPUs are available"}, "No CUDA GPUs are available.*CUDA_VISIBLE_DEVICES"),
        ({"error": ""}, "finds no CUDA GPU that it can use"),
        ({"capability": (7, 0)}, "compute capability 7.0, and torch .* only for sm_75, sm_80, sm_90.*cu126"),
    ],
)
def test_unusable_gpu_is_reported(machine, simulated, message):
    machine(**simulated)
    with pytest.raises(SetupError, match=message):
        devices.check_gpu(CUDA)
    devices.check_gpu(torch.device("cpu"))


def test_missing_apple_gpu_is_reported(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(SetupError, match="no Apple GPU.*-device cpu"):
        devices.check_gpu(torch.device("mps"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    devices.check_gpu(torch.device("mps"))


def test_invalid_gpu_number_is_reported(machine, monkeypatch):
    machine()

    def capability(device):
        raise AssertionError("Invalid device id")

    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    with pytest.raises(SetupError, match="There is no GPU cuda:3: torch finds 1"):
        devices.check_gpu(torch.device("cuda", 3))


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 6), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80", "sm_86"], False),
        ((9, 0), ["sm_90a"], True),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((10, 0), ["sm_100"], True),
        ((7, 0), ["sm_75", "compute_75"], False),
    ],
)
def test_kernels_are_matched_with_the_compute_capability(capability, architectures, runs):
    assert devices.has_kernels_for(capability, architectures) == runs


def test_limits_of_older_gpus_are_reported():
    (bfloat16,) = devices.gpu_limitations((7, 5))
    assert "7.5 has no bfloat16" in bfloat16 and "No change is needed" in bfloat16
    assert "nnUNet_compile=f" in devices.gpu_limitations((6, 1))[0]


@pytest.mark.parametrize("first", [True, False])
def test_too_little_memory_is_reported_with_numbers(monkeypatch, first):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (GB, 8 * GB))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * GB)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 4 * GB)

    def message(recomputes):
        options = {"planner": "nnUNetPlannerHRMedSeg", "recomputes": recomputes, "first": first}
        return devices.describe_out_of_memory(CUDA, "16 images of 1024 x 1024", **options)

    for text in ("16 images of 1024 x 1024", "has 8.0 GB", "3.0 GB", "3.0 GB are taken by", "end the other programs"):
        assert text in message(False)
    assert message(False).startswith("The first" if first else "A training step")
    assert '"recompute": true' in message(False) and '"recompute"' not in message(True) + message(None)
    assert 'a smaller "batch_size"' in message(True)
