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
    "CheckpointError": "errors",
    "ConvertedImages": "datasets.convert",
    "DataError": "errors",
    "DistillationOptions": "encoders.options",
    "EncoderDecoder": "architectures",
    "EncoderResult": "encoders.options",
    "HERSeg": "architectures",
    "HRMedSeg": "architectures",
    "HRMedSegError": "errors",
    "HRMedSegSAM": "prompting.networks",
    "HRMedSegSAM2": "prompting.networks",
    "LGViT": "architectures",
    "NetworkSpec": "plans.specs",
    "OnnxModel": "deployment",
    "PlanError": "errors",
    "PredictionFolders": "evaluation.comparison.inputs",
    "Predictor": "prompting.predictor",
    "PretrainingOptions": "encoders.options",
    "PromptingOptions": "prompting.options",
    "RunOptions": "encoders.options",
    "SegMaFormer": "architectures",
    "Segmentation": "prompting.segment",
    "SetupError": "errors",
    "StudentOptions": "encoders.options",
    "TeacherOptions": "encoders.options",
    "TrainedModels": "evaluation.comparison.inputs",
    "TrainingOptions": "evaluation.comparison.missing",
    "ZeroshotResult": "prompting.zeroshot",
    "benchmark_networks": "evaluation.benchmark.run",
    "check_installation": "doctor.checks",
    "compare": "evaluation.comparison.compare",
    "convert_images": "datasets.convert",
    "distill": "encoders.distill",
    "export_onnx": "deployment.onnx_export",
    "hrmedseg_plans": "plans.overrides",
    "import_encoder": "weights.published",
    "load_encoder": "weights.load",
    "make_dataset": "datasets.make",
    "pretrain": "encoders.pretrain",
    "segment": "prompting.segment",
    "separate_objects": "datasets.objects",
    "share_model": "deployment.sharing",
    "upload_model": "deployment.upload",
    "zeroshot": "prompting.zeroshot",
}
"""Public name -> the module it comes from."""

__all__ = [*sorted(_MODULES), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
