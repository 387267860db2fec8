"""HRMedSeg and HER-Seg for nnU-Net: whole-image segmentation at high resolution with 3.2 million parameters.

What is listed in `__all__` is the public API. It is imported on first use: importing the package imports no torch, and
nnU-Net finds trainers and planners by name (see `nnunet_hrmedseg.registration`).
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "HERSeg": "architectures",
    "HRMedSeg": "architectures",
    "HRMedSegError": "errors",
    "LGViT": "architectures",
    "OnnxModel": "deployment",
    "SegMaFormer": "architectures",
    "export_onnx": "deployment.onnx_export",
    "hrmedseg_plans": "plans.overrides",
    "share_model": "deployment.sharing",
    "upload_model": "deployment.upload",
}
"""Public name -> the module it comes from."""

__all__ = [*sorted(_MODULES), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
