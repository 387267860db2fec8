"""Stock nnU-Net trains while this package cannot be imported; only the names of this package report it."""

from __future__ import annotations

import pytest

from tests.end_to_end.commands import CPU, FAILURE
from tests.end_to_end.conftest import TINY_UNET
from tests.end_to_end.datasets import RGB

pytestmark = pytest.mark.end_to_end


def test_stock_training_works_while_this_package_is_broken(nnunet, broken_package, stock_planned, tmp_path):
    copy = nnunet.copy((RGB,), tmp_path)
    copy.run("nnUNetv2_train", RGB, "2d", 0, "-tr", "TinyUNet", *CPU, **TINY_UNET, **broken_package)
    assert (copy.model(RGB, "TinyUNet", "nnUNetPlans") / "fold_0" / "checkpoint_final.pth").is_file()


def test_trainers_of_this_package_report_that_it_is_broken(nnunet, broken_package, stock_planned):
    command = ("nnUNetv2_train", RGB, "2d", 0, "-tr", "nnUNetTrainerHRMedSeg", *CPU)
    assert "half an update" in nnunet.run(*command, expect=FAILURE, **broken_package).output
