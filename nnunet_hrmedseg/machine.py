"""The machine that something was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["processor_name"]


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
