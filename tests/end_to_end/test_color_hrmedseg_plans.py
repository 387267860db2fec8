"""`-pl nnUNetPlannerHRMedSeg`: the plans it writes, an edited canvas, and a training of HER-Seg."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import blosc2
import numpy as np
import pytest
from skimage import io

from tests.end_to_end.commands import CPU
from tests.end_to_end.conftest import PLANS, SMALL_CANVAS
from tests.end_to_end.datasets import RGB, above_chance

pytestmark = pytest.mark.end_to_end

TRAINER = "nnUNetTrainerHERSeg_1epoch"


@pytest.fixture(scope="module")
def planned(nnunet, trained_folds) -> SimpleNamespace:
    """Plan and preprocess at 1024 x 1024, after a training on stock plans has preprocessed the same dataset."""
    folder = trained_folds.lock_file.with_suffix("")
    before = arrays(folder)
    nnunet.run(
        "nnUNetv2_plan_and_preprocess", "-d", RGB, "-c", "2d", "-pl", "nnUNetPlannerHRMedSeg", "-npfp", 1, "-np", 1
    )
    return SimpleNamespace(plans=nnunet.plans(RGB, PLANS), folder=folder, before=before)


@pytest.fixture(scope="module")
def herseg(nnunet, planned) -> Path:
    """Train HER-Seg for one epoch on a small canvas that is set in the plans file. Return the model's folder."""
    nnunet.edit_plans(RGB, PLANS, patch_size=SMALL_CANVAS)
    nnunet.run("nnUNetv2_train", RGB, "2d", 0, "-p", PLANS, "-tr", TRAINER, *CPU)
    return nnunet.model(RGB, TRAINER, PLANS)


def test_plans_contain_only_2d_configurations_of_hrmedseg(planned):
    plans = planned.plans
    assert plans["plans_name"] == PLANS
    assert plans["experiment_planner_used"] == "nnUNetPlannerHRMedSeg"
    canvases = {name: configuration["patch_size"] for name, configuration in plans["configurations"].items()}
    _, height, width = plans["original_median_shape_after_transp"]
    fit = [height // 16 * 16, width // 16 * 16]
    assert canvases == {"2d": [1024, 1024], "2d_512": [512, 512], "2d_fit": fit}
    configuration = plans["configurations"]["2d"]
    assert configuration["patch_size"] == [1024, 1024]
    assert configuration["preprocessor_name"] == "HRMedSegPreprocessor"
    assert configuration["batch_size"] == 2
    assert configuration["architecture"]["network_class_name"] == "nnunet_hrmedseg.architectures.HRMedSeg"
    assert configuration["resampling_fn_probabilities"] == "resample_torch_fornnunet"


def test_both_workflows_give_the_same_data(nnunet, planned, trained_folds):
    assert planned.plans["configurations"]["2d"]["data_identifier"] == planned.folder.name
    after = arrays(planned.folder)
    assert len(after) == 10  # image and labels of five cases
    assert after.keys() == planned.before.keys()
    for name, array in after.items():
        np.testing.assert_array_equal(array, planned.before[name])


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return {file.name: blosc2.open(str(file), mode="r")[:] for file in folder.glob("*.b2nd")}


def test_both_workflows_give_the_same_configuration(planned, trained_folds):
    stock_road = json.loads((trained_folds.model / "plans.json").read_text())["configurations"]["2d"]
    assert stock_road.pop("encoder_started_from")["file"] == "bundled"
    assert stock_road == planned.plans["configurations"]["2d"]


def test_edited_canvas_has_separate_data(nnunet, planned, herseg):
    trained_with = json.loads((herseg / "plans.json").read_text())["configurations"]["2d"]
    assert trained_with["patch_size"] == SMALL_CANVAS
    assert trained_with["architecture"]["network_class_name"] == "nnunet_hrmedseg.architectures.HERSeg"
    folder = nnunet.preprocessed / nnunet.dataset(RGB) / trained_with["data_identifier"]
    assert folder.name.startswith("HRMedSeg_64x80_")
    assert len(list(folder.glob("*.pkl"))) == 5
    assert planned.folder.is_dir()


def test_herseg_learns_and_predicts(nnunet, herseg, tmp_path):
    labels = nnunet.raw / nnunet.dataset(RGB) / "labelsTs"
    nnunet.predict(RGB, TRAINER, PLANS, [0], tmp_path)
    for case in ("color_0", "gray"):
        prediction = io.imread(tmp_path / f"{case}.png")
        truth = io.imread(labels / f"{case}.png")
        assert prediction.shape == truth.shape
        assert set(np.unique(prediction)) <= {0, 1}
        # after one short epoch on bright and dark backgrounds, slightly better than chance
        assert above_chance(prediction == 1, truth == 1) > 0.1
