"""Folders of images and masks for the tests of `hrmedseg dataset`."""

import pytest


@pytest.fixture(autouse=True)
def integrity_check(request, monkeypatch):
    """Skip nnU-Net's integrity check, which takes seconds, in tests without the mark."""
    if not request.node.get_closest_marker("integrity"):
        monkeypatch.setattr("nnunet_hrmedseg.datasets.make._verify", lambda folder: None)


@pytest.fixture
def folders(tmp_path):
    for name in ("images", "masks", "raw"):
        (tmp_path / name).mkdir()
    return tmp_path
