"""Measure the peak of resident memory of one training step in a separate process (Linux: /proc).

    python -m nnunet_hrmedseg.evaluation.benchmark.peak CASE CHANNELS PRECISION [MODULE ...]

CASE is a Case as a JSON object. MODULE: modules that register networks. Prints the bytes that the step added.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import torch

from nnunet_hrmedseg.evaluation.benchmark.networks import CONTENDERS
from nnunet_hrmedseg.evaluation.benchmark.run import RESETS_PEAK
from nnunet_hrmedseg.evaluation.benchmark.steps import Case, random_batch, run_once


def main() -> None:
    """Print the bytes."""
    for module in sys.argv[4:]:
        import_module(module)
    case, channels, precision = Case(**json.loads(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
    trained = CONTENDERS[case.network].build(channels, case.classes, case.size)
    image, target = random_batch(case.image_shape(channels), case.classes, torch.device("cpu"))
    RESETS_PEAK.write_text("5")  # resets VmHWM
    before = resident("VmRSS")
    run_once(trained, image, target, True, precision)
    print(resident("VmHWM") - before)


def resident(name: str) -> int:
    """Return resident memory (VmRSS) or its peak (VmHWM) in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


if __name__ == "__main__":
    main()
