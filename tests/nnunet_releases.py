"""Tests of what nnU-Net has only since some release: see docs/versions.md."""

from importlib.metadata import version

import pytest
from packaging.version import Version

__all__ = ["since_nnunet"]


def since_nnunet(release: str, what: str) -> pytest.MarkDecorator:
    """Leaves a test out where the installed nnU-Net is older."""
    return pytest.mark.skipif(Version(version("nnunetv2")) < Version(release), reason=f"{what}: since {release}")
