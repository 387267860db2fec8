"""Tests that require a certain release of nnU-Net: see docs/reference/versions.md."""

import inspect
from importlib.metadata import version

import pytest
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from packaging.version import Version

__all__ = ["FEWEST_WORKERS", "since_nnunet"]

FEWEST_WORKERS = 0 if "sequential" in inspect.getsource(predict_entry_point) else 1
"""For -npp and -nps of nnUNetv2_predict: none, where it can do without."""


def since_nnunet(release: str, what: str) -> pytest.MarkDecorator:
    """Skip a test if the installed nnU-Net is older."""
    return pytest.mark.skipif(Version(version("nnunetv2")) < Version(release), reason=f"{what}: since {release}")
