"""Names of files; nnU-Net's are CASE_0000.png, CASE_0001.png, ... for the channels. Imports nothing heavy."""

from __future__ import annotations

import os
import re

__all__ = ["case_and_channel", "safe_path_str"]


def case_and_channel(file_name: str, file_ending: str = "") -> tuple[str, int] | None:
    """The case's name and the channel's number, or None where the name is another or does not end in `file_ending`."""
    match = re.fullmatch(r"(.+)_(\d{4})" + re.escape(file_ending), file_name)
    return None if match is None else (match[1], int(match[2]))


def safe_path_str(path: str) -> str:
    """Return a path that can be printed, whatever bytes it has."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
