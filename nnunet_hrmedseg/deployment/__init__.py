"""Trained models as ONNX files, or as folders to share; prediction with ONNX files is in the package hrmedseg_onnx."""

from __future__ import annotations

from hrmedseg_onnx.model import OnnxModel

__all__ = ["OnnxModel"]
