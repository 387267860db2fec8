"""Fixtures for tests of `hrmedseg encoder distill`: teachers and images of a few kilobytes."""

import pytest

from tests.encoders.tiny_datasets import write_folder
from tests.teachers.tiny_teachers import write_nnunet, write_sam, write_sam2


@pytest.fixture
def no_curve(monkeypatch):
    """Skip the plot of losses, which takes longer than training these epochs."""
    monkeypatch.setattr("nnunet_hrmedseg.encoders.loop.draw_curve", lambda rows, file: None)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    write_sam(folder / "sam_tiny.pth")
    write_sam2(folder / "sam2_tiny")
    write_nnunet(folder / "nnUNetTrainer__nnUNetPlans__2d")
    write_nnunet(folder / "nnUNetTrainer__hrmedseg__2d", "HRMedSeg")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "pictures", 12)
