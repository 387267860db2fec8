"""File names: nnU-Net's CASE_0000.png, CASE_0001.png, ... for channels, and paths for messages."""

from __future__ import annotations

import os
import re

__all__ = ["case_and_channel", "safe_path_str"]


def case_and_channel(file_name: str, file_ending: str = "") -> tuple[str, int] | None:
    """Return the case's name and the channel's number, or None if the name does not have this form and ending."""
    match = re.fullmatch(r"(.+)_(\d{4})" + re.escape(file_ending), file_name, re.DOTALL)
    return None if match is None else (match[1], int(match[2]))


def safe_path_str(path: str) -> str:
    """Return a path with escaped bytes where it is not valid UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
