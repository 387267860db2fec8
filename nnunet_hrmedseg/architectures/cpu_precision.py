"""Prediction in bfloat16 on processors that compute in it (AMX, AVX512-BF16); all others would only emulate it.

nnU-Net does not autocast on the CPU, so the network does it by itself, in evaluation and without gradients. Weights and
logits stay float32, and so does all that autocast or this network keeps in it (norms, linear attention, mask product).
"""

from __future__ import annotations

import os

import torch

from nnunet_hrmedseg.errors import HRMedSegError

__all__ = ["ENVIRONMENT_VARIABLE", "predicts_in_bfloat16"]

ENVIRONMENT_VARIABLE = "HRMEDSEG_CPU_BFLOAT16"


def predicts_in_bfloat16() -> bool:
    """Whether networks built now predict in bfloat16 on the CPU: where the processor can, or as the user says.

    The environment variable HRMEDSEG_CPU_BFLOAT16 decides: `auto` (as without it), `1` or `0`.

    Raises:
        HRMedSegError: if the variable holds something else.
    """
    wanted = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    if wanted not in ("auto", "0", "1"):
        raise HRMedSegError(f"{ENVIRONMENT_VARIABLE}={wanted}: it can be auto, 0 (float32) or 1 (bfloat16).")
    return processor_computes_in_bfloat16() if wanted == "auto" else wanted == "1"


def processor_computes_in_bfloat16() -> bool:
    # torch says it in functions without a promise: where one is missing, float32 stays
    tests = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(test() for test in tests if test is not None)
