"""Grayscale images: a region-based dataset with unusual images, and a partly annotated dataset."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from skimage import io

from tests.end_to_end.conftest import ONE_EPOCH, PLANS, SMALL_CANVAS
from tests.end_to_end.datasets import BORDER, IGNORE, REGIONS, dice

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def predicted_regions(nnunet, regions_model, tmp_path_factory) -> Path:
    return nnunet.predict(REGIONS, ONE_EPOCH, PLANS, [0], tmp_path_factory.mktemp("regions"))


@pytest.fixture(scope="module")
def predicted_ignore(nnunet, ignore_model, tmp_path_factory) -> Path:
    return nnunet.predict(IGNORE, ONE_EPOCH, PLANS, ["all"], tmp_path_factory.mktemp("ignore"))


def test_regions_are_learned(nnunet, regions_model):
    plans = json.loads((regions_model.folder / "plans.json").read_text())
    assert plans["configurations"]["2d"]["patch_size"] == SMALL_CANVAS
    summary = json.loads((regions_model.folder / "fold_0" / "validation" / "summary.json").read_text())
    assert set(summary["mean"]) == {"(1, 2)", str(BORDER)}
    assert summary["mean"]["(1, 2)"]["Dice"] > 0.5


def test_regions_are_predicted_as_labels(nnunet, predicted_regions):
    prediction = io.imread(predicted_regions / "gray.png")
    truth = io.imread(nnunet.raw / nnunet.dataset(REGIONS) / "labelsTs" / "gray.png")
    assert prediction.shape == truth.shape
    assert set(np.unique(prediction)) <= {0, 1, BORDER}
    assert dice(prediction > 0, truth > 0) > 0.5


def test_odd_images_are_preprocessed_for_training(nnunet, regions_model):
    plans = json.loads((regions_model.folder / "plans.json").read_text())
    folder = nnunet.preprocessed / nnunet.dataset(REGIONS) / plans["configurations"]["2d"]["data_identifier"]
    cases = {file.stem for file in folder.glob("*.pkl")}
    assert {"sixteen_bit", "constant", "one_row"} <= cases


@pytest.mark.parametrize("case", ["sixteen_bit", "constant", "black", "one_row"])
def test_odd_images_are_predicted_at_their_original_size(nnunet, predicted_regions, case):
    prediction = io.imread(predicted_regions / f"{case}.png")
    truth = io.imread(nnunet.raw / nnunet.dataset(REGIONS) / "labelsTs" / f"{case}.png")
    assert prediction.shape == truth.shape
    assert set(np.unique(prediction)) <= {0, 1, BORDER}
    if case == "sixteen_bit":
        assert dice(prediction > 0, truth > 0) > 0.3


def test_weights_of_a_dataset_with_other_classes_are_loaded(ignore_model):
    _, report = ignore_model.output.split("Loading pretrained weights from file")
    taken, _ = report.split("################### Done ###################")
    assert "encoder" in taken and "decoder" in taken
    assert ".seg_layers." not in taken


def test_partly_annotated_dataset_is_trained_on_all_cases(nnunet, ignore_model):
    validation = ignore_model.folder / "fold_all" / "validation"
    cases = sorted(file.stem for file in (nnunet.raw / nnunet.dataset(IGNORE) / "labelsTr").iterdir())
    assert sorted(file.stem for file in validation.glob("*.tif")) == cases
    summary = json.loads((validation / "summary.json").read_text())
    assert set(summary["mean"]) == {"1", str(BORDER)}
    assert summary["mean"]["1"]["Dice"] > 0.5
    for case in cases:
        prediction = io.imread(validation / f"{case}.tif")
        assert prediction.shape == (180, 220)
        assert set(np.unique(prediction)) <= {0, 1, BORDER}


def test_unannotated_part_is_predicted(nnunet, predicted_ignore):
    prediction = io.imread(predicted_ignore / "gray.tif")
    truth = io.imread(nnunet.raw / nnunet.dataset(IGNORE) / "labelsTs" / "gray.tif")
    unannotated_in_training = np.s_[:, truth.shape[1] * 2 // 3 :]
    assert prediction.shape == truth.shape
    assert set(np.unique(prediction)) <= {0, 1, BORDER}
    assert dice(prediction[unannotated_in_training] > 0, truth[unannotated_in_training] > 0) > 0.5
