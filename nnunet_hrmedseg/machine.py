"""The machine that something was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["processor_name", "usable_cores"]


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


def usable_cores() -> int:
    """How many cores this process may run on: fewer than there are where it was pinned to some (`taskset`)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
