"""Recognition of a file by its first bytes, such as a web page in place of weights."""

from __future__ import annotations

from hrmedseg_onnx.file_kinds import recognize_file

__all__ = ["recognize_file"]
