"""Prediction in bfloat16 on processors that support it (AMX, AVX512-BF16); all others would only emulate it.

nnU-Net does not use autocast on the CPU, so the network does it itself, in evaluation mode and without gradients.
Weights and logits stay in float32, and so does everything that autocast or the network keeps in it (norms, linear
attention, mask product).
"""

from __future__ import annotations

import os

import torch

from nnunet_hrmedseg.errors import SetupError

__all__ = ["ENVIRONMENT_VARIABLE", "predicts_in_bfloat16", "processor_supports_bfloat16", "set_cpu_precision"]

ENVIRONMENT_VARIABLE = "HRMEDSEG_CPU_BFLOAT16"


def predicts_in_bfloat16() -> bool:
    """Return whether networks predict in bfloat16 on the CPU.

    The environment variable HRMEDSEG_CPU_BFLOAT16 decides: `auto` (the default, if the processor supports it), `1` or
    `0`.

    Raises:
        SetupError: the variable has another value.
    """
    value = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    if value not in ("auto", "0", "1"):
        raise SetupError(f"{ENVIRONMENT_VARIABLE}={value} is not valid. Set it to auto, 0 (float32) or 1 (bfloat16).")
    return processor_supports_bfloat16() if value == "auto" else value == "1"


def processor_supports_bfloat16() -> bool:
    """Return whether the processor computes in bfloat16; False where torch cannot tell."""
    # private functions of torch, which a release may remove
    tests = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(test() for test in tests if test is not None)


def set_cpu_precision(network: torch.nn.Module) -> None:
    """Set the precision of a network's prediction on the CPU, if it is a network that offers the choice.

    Raises:
        SetupError: see `predicts_in_bfloat16`.
    """
    if hasattr(network, "cpu_bfloat16"):
        network.cpu_bfloat16 = predicts_in_bfloat16()  # type: ignore[assignment]
