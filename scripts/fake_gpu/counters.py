"""Counters of the stand-in, for measurements that run with it."""

from __future__ import annotations

import ctypes

COUNTED = (
    "launches",
    "copies_to_device",
    "copies_from_device",
    "copies_on_device",
    "bytes_to_device",
    "bytes_from_device",
    "bytes_on_device",
    "synchronizations",
    "allocations",
    "blas_and_cudnn_calls",
    "fills",
    "pageable_copies_to_device",
)
"""In the order of the enumeration in runtime.cpp."""


def present() -> bool:
    """Return whether this process runs with the stand-in."""
    return hasattr(ctypes.CDLL(None), "fake_counts")


def counts(*, reset: bool = True) -> dict[str, int]:
    """Return the counts since the last reset."""
    values = (ctypes.c_longlong * len(COUNTED))()
    ctypes.CDLL(None).fake_counts(values, int(reset))
    return dict(zip(COUNTED, values, strict=True))
