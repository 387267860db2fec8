"""Choice of the device to compute on, and checks that torch can use the GPU of this machine."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from nnunet_hrmedseg.errors import SetupError

__all__ = [
    "INSTALL",
    "check_gpu",
    "choose_device",
    "describe_out_of_memory",
    "gpu_limitations",
    "has_kernels_for",
]

INSTALL = "pip install torch --index-url https://download.pytorch.org/whl/{build}"
"""Command that installs a build of torch, such as cu126."""

OTHERWISE = "Without a GPU, add -device cpu."
SMALLEST_FOR_COMPILATION = 7, 0  # Triton's
SMALLEST_FOR_BFLOAT16 = 8, 0


def choose_device(wanted: str | None = None) -> str:
    """Return the device to compute on: `wanted`, or the first available of cuda, mps and cpu.

    Raises:
        SetupError: torch does not find the wanted device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted is None:
        return next(name for name, there in available.items() if there)
    if not available[wanted]:
        raise SetupError(
            f"PyTorch {torch.__version__} finds no {wanted} device here. Leave -device out to use an available one "
            f"({', '.join(name for name, there in available.items() if there)}), or install a PyTorch built for it."
        )
    return wanted


def check_gpu(device: torch.device) -> None:
    """Raise unless torch can compute on this device, if it is a GPU.

    Raises:
        SetupError: a torch without CUDA, no driver or one that is too old, no GPU, no GPU of this number, or one
            that torch has no kernels for; or no Apple GPU.
    """
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SetupError(
            f"torch {torch.__version__} finds no Apple GPU here (-device mps): it needs Apple silicon and a recent "
            f"macOS. {OTHERWISE}"
        )
    if device.type != "cuda":
        return
    if torch.version.cuda is None and torch.version.hip is None:
        raise SetupError(
            f"The installed torch {torch.__version__} was built without CUDA and cannot use a GPU. Install one that "
            f"was built with it, such as: {INSTALL.format(build='cu126')}. {OTHERWISE}"
        )
    try:
        torch.cuda.init()
        capability = torch.cuda.get_device_capability(device)
    except (RuntimeError, AssertionError) as error:
        raise SetupError(_without_gpu(str(error), device)) from error
    kernels = torch.cuda.get_arch_list()
    if torch.version.hip is None and kernels and not has_kernels_for(capability, kernels):
        raise SetupError(
            f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}, and torch "
            f"{torch.__version__} has kernels only for {', '.join(kernels)}. Install a torch that supports it: builds "
            f"for CUDA 12.6 go back to 5.0 ({INSTALL.format(build='cu126')}). {OTHERWISE}"
        )


def _without_gpu(reason: str, device: torch.device) -> str:
    """Return the message for torch's own reason why CUDA could not be started."""
    if "too old" in reason:
        found = re.search(r"found version (\d+)", reason)
        version = f" (it supports CUDA {int(found[1]) // 1000}.{int(found[1]) % 1000 // 10})" if found else ""
        return (
            f"The NVIDIA driver is too old{version} for torch {torch.__version__}, which was built for CUDA "
            f"{torch.version.cuda}. Update the driver, or install a torch for an older CUDA, such as: "
            f"{INSTALL.format(build='cu126')}. {OTHERWISE}"
        )
    if "no NVIDIA driver" in reason:
        return f"No NVIDIA driver was found. Install it, and check with nvidia-smi. {OTHERWISE}"
    if "invalid device" in reason.lower():
        return f"There is no GPU {device}: torch finds {torch.cuda.device_count()}. Choose another number, or none."
    return (
        f"torch finds no CUDA GPU that it can use ({reason.strip().splitlines()[0] if reason.strip() else 'no reason'}"
        f"). Does nvidia-smi list one, and is CUDA_VISIBLE_DEVICES right? {OTHERWISE}"
    )


def has_kernels_for(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Return whether one of torch's architectures runs on a GPU of this compute capability.

    Args:
        capability: (major, minor).
        architectures: as of `torch.cuda.get_arch_list`: machine code (sm_86) runs on the same major number from its
            minor number upwards, intermediate code (compute_90) on everything from its number upwards.
    """
    for name in architectures:
        parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name)
        if parts is None:
            continue
        number = int(parts[2]), int(parts[3])
        same_major = parts[1] == "compute" or number[0] == capability[0]
        if number <= capability and same_major:
            return True
    return False


def gpu_limitations(capability: tuple[int, int]) -> list[str]:
    """Return the limitations of a GPU of this compute capability, with advice; empty if it has none."""
    number = ".".join(map(str, capability))
    limitations = []
    if capability < SMALLEST_FOR_COMPILATION:
        limitations.append(
            f"Compute capability {number} is below 7.0, which torch.compile needs. Set nnUNet_compile=f, or training "
            f"stops with an error of Triton."
        )
    if capability < SMALLEST_FOR_BFLOAT16:
        limitations.append(
            f"Compute capability {number} has no bfloat16. No change is needed: training and prediction use "
            f"float16 on every GPU."
        )
    return limitations


def describe_out_of_memory(
    device: torch.device, batch: str, *, planner: str, recomputes: bool | None, first: bool
) -> str:
    """Return the message for a training step that did not fit into the memory of the GPU.

    Args:
        device: the GPU.
        batch: description of the batch, such as "16 images of 1024 x 1024".
        planner: name of a planner whose plans have an editable batch size.
        recomputes: whether layers are already recomputed in the backward pass; None if that is not supported.
        first: whether it was the first step, so that the batch never fit.
    """
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.max_memory_allocated(device)
    others = max(0, total - free - torch.cuda.memory_reserved(device))
    when = "The first training step" if first else "A training step"
    advice = ['a smaller "batch_size"']
    if recomputes is False:
        advice.insert(0, '"recompute": true among the arch_kwargs (a step then takes about a third longer)')
    text = (
        f"{when} with {batch} does not fit into the GPU's memory: the GPU has {total / 1e9:.1f} GB, training had taken "
        f"{allocated / 1e9:.1f} GB of it when it ran out, and {others / 1e9:.1f} GB are taken by the driver and by "
        f"other programs. In the plans that nnUNetv2_plan_experiment -pl {planner} writes, set {', or '.join(advice)}"
    )
    if others > 0.2 * total:
        text += "; or end the other programs (nvidia-smi lists them)"
    return f"{text}. Stock plans cannot be edited for this."
