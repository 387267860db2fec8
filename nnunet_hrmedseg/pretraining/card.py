"""What every encoder's card says about the machine that made it."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import torch

from nnunet_hrmedseg import __version__
from nnunet_hrmedseg.pretraining.processes import Processes

__all__ = ["environment", "processor_name"]


def environment(group: Processes) -> dict[str, Any]:
    """Hardware, versions and date."""
    if group.device.type == "cuda":
        hardware = f"{group.count} x {torch.cuda.get_device_name(group.device)}"
    else:
        hardware = f"{processor_name()}, {group.count} process(es) with {torch.get_num_threads()} thread(s)"
    return {
        "hardware": hardware,
        "versions": {
            "nnunet_hrmedseg": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "date": datetime.date.today().isoformat(),
    }


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
