"""Volumes, slice by slice with the configuration 2d. The slices lie along the last array axis."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from tests.end_to_end.conftest import ONE_EPOCH, PLANS, SMALL_CANVAS
from tests.end_to_end.datasets import DIRECTION, ORIGIN, SPACING, VOLUMES, dice, read_volume

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def predicted(nnunet, volumes_model, tmp_path_factory) -> Path:
    return nnunet.predict(VOLUMES, ONE_EPOCH, PLANS, [0], tmp_path_factory.mktemp("volumes"))


def test_slices_are_perpendicular_to_the_thick_axis(volumes_model):
    plans = json.loads((volumes_model.folder / "plans.json").read_text())
    assert plans["transpose_forward"] == [2, 0, 1]
    assert plans["original_median_shape_after_transp"] == [24, 150, 160]
    assert plans["configurations"]["2d"]["patch_size"] == SMALL_CANVAS


def test_volumes_are_learned(volumes_model):
    summary = json.loads((volumes_model.folder / "fold_0" / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) > 0
    assert summary["foreground_mean"]["Dice"] > 0.5


def test_prediction_has_the_geometry_of_its_image(nnunet, predicted):
    image = read_volume(nnunet.raw / nnunet.dataset(VOLUMES) / "imagesTs" / "gray_0000.nii.gz")
    prediction = read_volume(predicted / "gray.nii.gz")
    assert prediction.GetSize() == image.GetSize() == (24, 160, 150)
    for of_both, written in (
        ((prediction.GetSpacing(), image.GetSpacing()), SPACING),
        ((prediction.GetOrigin(), image.GetOrigin()), ORIGIN),
        ((prediction.GetDirection(), image.GetDirection()), DIRECTION),
    ):
        assert of_both[0] == pytest.approx(of_both[1])
        assert of_both[1] == pytest.approx(written)


def test_prediction_overlaps_the_nuclei(nnunet, predicted):
    truth = sitk.GetArrayFromImage(read_volume(nnunet.raw / nnunet.dataset(VOLUMES) / "labelsTs" / "gray.nii.gz"))
    prediction = sitk.GetArrayFromImage(read_volume(predicted / "gray.nii.gz"))
    assert set(np.unique(prediction)) <= {0, 1}
    assert dice(prediction == 1, truth == 1) > 0.5


def test_memory_target_sets_recomputation_and_batch_size(nnunet, small_canvas):
    name = "nnUNetHRMedSegPlans_1GB"
    nnunet.run(
        "nnUNetv2_plan_experiment", "-d", VOLUMES, "-pl", "nnUNetPlannerHRMedSeg",
        "-gpu_memory_target", 1, "-overwrite_plans_name", name,
    )  # fmt: skip
    small, default = (nnunet.plans(VOLUMES, plans)["configurations"]["2d"] for plans in (name, PLANS))
    assert small["patch_size"] == [1024, 1024]
    assert default["batch_size"] == 7  # nnU-Net's rule: 5 % of 6 volumes of 24 slices
    assert 2 < small["batch_size"] < 7
    assert [plan["architecture"]["arch_kwargs"]["recompute"] for plan in (small, default)] == [True, False]
