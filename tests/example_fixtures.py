"""Files that examples in docstrings require and do not create: see tests/test_api_examples.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.deployment.tiny_models import write_example_model
from tests.plans.stock_plans import stock_plans
from tests.prompting import example_files


def write_plans(folder: Path) -> None:
    """Write plans as nnU-Net creates them for color images."""
    (folder / "nnUNetPlans.json").write_text(json.dumps(stock_plans()))


FIXTURES: dict[str, Callable[[Path], object]] = {
    **example_files.FIXTURES,
    "hrmedseg_plans": write_plans,
    "export_onnx": write_example_model,
    "share_model": write_example_model,
}
"""Public name -> function that writes the files of its example into the folder in which it runs."""
