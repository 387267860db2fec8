"""The precision of prediction on the CPU: processor, environment variable, networks with a fixed precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunet_hrmedseg.architectures import HRMedSeg
from nnunet_hrmedseg.errors import SetupError
from nnunet_hrmedseg.io.cpu_precision import ENVIRONMENT_VARIABLE, predicts_in_bfloat16, set_cpu_precision

SMALL = {"embed_dim": 8, "depth": 1, "decoder_dim": 16, "decoder_heads": 2, "decoder_mlp_dim": 16}


def test_bfloat16_follows_the_processor(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    for supported in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda supported=supported: supported)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert predicts_in_bfloat16() is supported


@pytest.mark.parametrize("value, expected", [("0", False), ("1", True)])
def test_environment_variable_sets_the_precision_of_a_network(monkeypatch, value, expected):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, value)
    network, other = HRMedSeg(1, 2, **SMALL), nn.Conv2d(1, 2, 1)
    set_cpu_precision(network)
    set_cpu_precision(other)
    assert network.cpu_bfloat16 is expected and not hasattr(other, "cpu_bfloat16")


def test_invalid_value_is_an_error(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "yes")
    with pytest.raises(SetupError, match="HRMEDSEG_CPU_BFLOAT16=yes"):
        set_cpu_precision(HRMedSeg(1, 2, **SMALL))
