"""Prediction with exported HRMedSeg models (ONNX), without PyTorch and nnU-Net.

Examples:
    >>> from hrmedseg_onnx import OnnxModel
    >>> model = OnnxModel("mine_onnx")  # doctest: +SKIP
    >>> labels = model.predict("photo.png").labels  # doctest: +SKIP

Public names are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "FolderWatch": "watch",
    "HRMedSegError": "errors",
    "OnnxModel": "model",
    "Prediction": "model",
    "predict_files": "predict",
    "predict_stream": "stream",
}
"""Public name -> the module that defines it."""

__all__ = [*sorted(_MODULES), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
