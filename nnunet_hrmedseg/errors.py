"""Errors that users read: what is wrong, with which value, and what to do.

All are kinds of `HRMedSegError`, which the package hrmedseg_onnx (prediction with exported models) defines.
"""

from __future__ import annotations

from hrmedseg_onnx.errors import (
    CheckpointError,
    DataError,
    HRMedSegError,
    SetupError,
    format_names,
    format_shape,
    summarize_error,
)

__all__ = [
    "CheckpointError",
    "DataError",
    "HRMedSegError",
    "PlanError",
    "SetupError",
    "format_names",
    "format_shape",
    "summarize_error",
]


class PlanError(HRMedSegError):
    """Plans, dataset.json or options that cannot be planned, trained or predicted with."""
