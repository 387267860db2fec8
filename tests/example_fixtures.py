"""Files that examples in docstrings need and do not make themselves: see tests/test_api_examples.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

FIXTURES: dict[str, Callable[[Path], None]] = {}
"""Public name -> function that writes the files of its example into the folder in which it runs."""
