"""Assignment of tests to processes, and their order (pytest-xdist).

Each file runs in one process. Files that share slow fixtures run in the same process. The longest files run first,
so that no core is idle at the end.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.deployment.exported import pictures, volumes
from tests.io.hub_server import hub

__all__ = ["hub", "pictures", "volumes"]

# pytest's option pythonpath applies only to this process; commands that tests start must find hrmedseg_onnx as well
CLIENT = Path(__file__).parents[1] / "client"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(CLIENT), os.environ.get("PYTHONPATH"))))

SHARED = {
    "color images": ("end_to_end/test_broken_package", "end_to_end/test_color_"),
    "small canvas": tuple(
        f"end_to_end/test_{name}" for name in ("changing_data", "encoders", "gray_images", "mistakes", "volumes")
    ),
    "ONNX files": (
        "deployment/test_export",
        "deployment/test_onnx_",
        "client/test_parity",
        "client/test_predict",
        "serving/test_serving_guide",
        "serving/test_triton",
    ),
}
"""Shared fixture -> prefixes of the files that use it, relative to this folder."""


def shared_by(node_id: str) -> str:
    """Return the name of the fixture that a test's file shares with others, or the file."""
    file = node_id.partition("::")[0]
    return next((name for name, files in SHARED.items() if file.removeprefix("tests/").startswith(files)), file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = list(SHARED)

    def position(item: pytest.Item) -> tuple[int, bool]:
        shared = shared_by(item.nodeid)
        place = order.index(shared) if shared in order else len(order)
        return place, item.get_closest_marker("end_to_end") is None

    items.sort(key=position)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return shared_by(nodeid)

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None
