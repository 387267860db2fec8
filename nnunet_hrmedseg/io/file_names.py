"""File names: nnU-Net's CASE_0000.png, CASE_0001.png, ... for channels, and names and paths for messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hrmedseg_onnx.file_names import case_and_channel, safe_path_str
from nnunet_hrmedseg.errors import format_names

__all__ = ["case_and_channel", "describe_alike", "safe_path_str"]


def describe_alike(names: Sequence[str]) -> str | None:
    """Return a clause on names that are one name on Windows and macOS; None if there are no such names."""
    lower = Counter(name.lower() for name in names)
    alike = [name for name in names if lower[name.lower()] > 1]
    if not alike:
        return None
    return (
        f"{format_names(alike)} differ only in upper and lower case: on Windows and macOS, one would replace the other"
    )
