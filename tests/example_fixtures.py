"""Files that examples in docstrings need and do not make themselves: see tests/test_api_examples.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.deployment.tiny_models import write_example_model
from tests.prompting import example_files

FIXTURES: dict[str, Callable[[Path], object]] = {
    **example_files.FIXTURES,
    "export_onnx": write_example_model,
    "share_model": write_example_model,
}
"""Public name -> function that writes the files of its example into the folder in which it runs."""
