"""The machine: what it computes on, and what something was measured on. Imports torch only where it is asked."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_hrmedseg.errors import HRMedSegError

if TYPE_CHECKING:
    import torch

__all__ = [
    "choose_device",
    "free_device_memory",
    "free_memory",
    "processor_name",
    "usable_cores",
]

MEMORY_INFORMATION = Path("/proc/meminfo")


def choose_device(wanted: str | None = None) -> str:
    """Return the device to compute on: `wanted`, or else the first that is there of cuda, mps and cpu.

    Raises:
        HRMedSegError: torch does not find the device that is wanted.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted is None:
        return next(name for name, there in available.items() if there)
    if not available[wanted]:
        raise HRMedSegError(
            f"PyTorch {torch.__version__} finds no {wanted} device here. Leave -device out to take what there is "
            f"({', '.join(name for name, there in available.items() if there)}), or install a PyTorch made for it."
        )
    return wanted


def processor_name() -> str:
    """The processor as the operating system names it, and how many of its cores there are."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {os.cpu_count()} cores"


def free_memory() -> int | None:
    """Bytes of memory that can still be had, what caches files among them; None where nothing says (macOS, Windows)."""
    try:
        lines = MEMORY_INFORMATION.read_text().splitlines()
        (kib,) = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
        return int(kib) * 1024
    except (OSError, ValueError, IndexError):
        return None


def free_device_memory(device: torch.device) -> int | None:
    """Return the bytes that can still be had where tensors of the device lie; None where nothing tells it (MPS)."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return free_memory() if device.type == "cpu" else None


def usable_cores() -> int:
    """How many cores this process may run on: fewer than there are where it was pinned to some (`taskset`)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
