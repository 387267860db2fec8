"""Processor, cores and free memory of this machine. Imports torch only in functions that need it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = [
    "free_device_memory",
    "free_memory",
    "processor_name",
    "usable_cores",
]

MEMORY_INFORMATION = Path("/proc/meminfo")


def processor_name() -> str:
    """Return the name of the processor and its number of cores."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {os.cpu_count()} cores"


def free_memory() -> int | None:
    """Return the available memory in bytes, including file caches; None if unknown (macOS, Windows)."""
    try:
        lines = MEMORY_INFORMATION.read_text().splitlines()
        (kib,) = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
        return int(kib) * 1024
    except (OSError, ValueError, IndexError):
        return None


def free_device_memory(device: torch.device) -> int | None:
    """Return the available memory in bytes for tensors on a device; None if unknown (MPS)."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return free_memory() if device.type == "cpu" else None


def usable_cores() -> int:
    """Return the number of cores this process may use, which `taskset` can reduce."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
