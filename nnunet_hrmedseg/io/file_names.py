"""File names: nnU-Net's CASE_0000.png, CASE_0001.png, ... for channels, and paths for messages."""

from __future__ import annotations

from hrmedseg_onnx.file_names import case_and_channel, safe_path_str

__all__ = ["case_and_channel", "safe_path_str"]
