"""nnU-Net's names of image files: CASE_0000.png, CASE_0001.png, ... for a case's channels. Imports nothing heavy."""

from __future__ import annotations

import re

__all__ = ["case_and_channel"]


def case_and_channel(file_name: str, file_ending: str = "") -> tuple[str, int] | None:
    """The case's name and the channel's number, or None where the name is another or does not end in `file_ending`."""
    match = re.fullmatch(r"(.+)_(\d{4})" + re.escape(file_ending), file_name)
    return None if match is None else (match[1], int(match[2]))
