"""HRMedSeg and HER-Seg for nnU-Net: whole-image segmentation at high resolution with 3.2 million parameters.

What is listed in `__all__` is the public API. It is imported on first use: importing the package imports no torch, and
nnU-Net finds trainers and planners by name (see `nnunet_hrmedseg.registration`).
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "BenchmarkOptions": "evaluation.benchmark.options",
    "HERSeg": "architectures",
    "HRMedSeg": "architectures",
    "HRMedSegError": "errors",
    "LGViT": "architectures",
    "PredictionFolders": "evaluation.comparison.inputs",
    "SegMaFormer": "architectures",
    "TrainedModels": "evaluation.comparison.inputs",
    "TrainingOptions": "evaluation.comparison.missing",
    "benchmark_networks": "evaluation.benchmark.run",
    "check_installation": "doctor.checks",
    "compare": "evaluation.comparison.compare",
    "hrmedseg_plans": "plans.overrides",
    "make_dataset": "datasets.make",
    "separate_objects": "datasets.objects",
}
"""Public name -> the module it comes from."""

__all__ = [*sorted(_MODULES), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
