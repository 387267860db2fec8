"""The machine that something was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["free_memory", "processor_name", "usable_cores"]


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
    """Bytes of memory that nothing is using; None where the system does not say (macOS, Windows)."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def usable_cores() -> int:
    """How many cores this process may run on: fewer than there are where it was pinned to some (`taskset`)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
