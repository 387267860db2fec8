"""Stock planning, then `-tr nnUNetTrainerHRMedSeg`: color images at 1024 x 1024, from planning to a shared model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import io

from tests.end_to_end.commands import CPU, NNUNet
from tests.end_to_end.conftest import TINY, TINY_UNET
from tests.end_to_end.datasets import RGB

pytestmark = pytest.mark.end_to_end

TRAINING_CASES = ["color_0", "color_1", "color_2", "color_3", "gray"]
NEW_CASES = {"color_0": (256, 320), "gray": (360, 360)}  # height, width
FOLDS = (0, 1)


@pytest.fixture(scope="module")
def predicted(nnunet, trained_folds) -> Path:
    """Predict new cases by both folds of HRMedSeg."""
    return predict(nnunet, "TinyHRMedSeg", nnunet.folder / "predicted", workers=1, **TINY)


@pytest.fixture(scope="module")
def unet(nnunet, trained_folds) -> Path:
    """Train nnU-Net's U-Net on the same folds. Return the folder of its model."""
    train = ("nnUNetv2_train", RGB, "2d")
    for fold in [nnunet.start(*train, fold, "-tr", "TinyUNet", "--npz", *CPU, **TINY_UNET) for fold in FOLDS]:
        fold.wait()
    return nnunet.model(RGB, "TinyUNet", "nnUNetPlans")


def predict(nnunet: NNUNet, trainer: str, output: Path, **environment) -> Path:
    return nnunet.predict(RGB, trainer, "nnUNetPlans", FOLDS, output, "--save_probabilities", **environment)


def test_stock_planning_is_unchanged(nnunet, stock_planned):
    plans = nnunet.plans(RGB, "nnUNetPlans")
    configuration = plans["configurations"]["2d"]
    assert plans["experiment_planner_used"] == "ExperimentPlanner"
    assert configuration["preprocessor_name"] == "DefaultPreprocessor"
    assert "HRMedSeg" not in json.dumps(plans)
    preprocessed = nnunet.preprocessed / nnunet.dataset(RGB) / "nnUNetPlans_2d"
    assert sorted(file.stem for file in preprocessed.glob("*.pkl")) == TRAINING_CASES
    assert not [name for name in stock_planned if "HRMedSeg" in name]


def test_killed_preprocessing_leaves_no_data_that_looks_complete(killed_preprocessing, trained_folds):
    left_behind = killed_preprocessing.left_behind
    assert [name for name in left_behind if ".incomplete-" in name]
    assert not [name for name in left_behind if "." not in name]
    # the next training removes the leftovers
    assert not list(killed_preprocessing.folder.glob("*.incomplete*"))


def test_one_of_two_folds_preprocesses_and_both_train(trained_folds):
    made = [output.count("Resizing 5 cases to the canvas") for output in trained_folds.outputs]
    assert sorted(made) == [0, 1]
    assert all("Epoch 0 of 2" in output for output in trained_folds.outputs)

    folder = trained_folds.lock_file.with_suffix("")
    assert sorted(file.stem for file in folder.glob("*.pkl")) == TRAINING_CASES
    assert len(list(folder.glob("*.b2nd"))) == 2 * len(TRAINING_CASES)
    assert json.loads((folder / "canvas_data" / "record.json").read_text())["data_identifier"] == folder.name


def test_plans_of_the_model_are_those_it_was_trained_with(nnunet, trained_folds):
    plans = json.loads((trained_folds.model / "plans.json").read_text())
    configuration = plans["configurations"]["2d"]
    assert plans["plans_name"] == "nnUNetPlans"
    assert configuration["patch_size"] == [1024, 1024]
    assert configuration["batch_size"] == 2
    assert configuration["preprocessor_name"] == "HRMedSegPreprocessor"
    assert configuration["architecture"]["network_class_name"] == "nnunet_hrmedseg.architectures.HRMedSeg"
    assert configuration["data_identifier"] == trained_folds.lock_file.stem
    # the plans file given to the command remains the stock one
    assert "HRMedSeg" not in nnunet.plans_file(RGB, "nnUNetPlans").read_text()


def test_killed_training_continues_from_the_saved_epoch(trained_folds):
    assert "checkpoint_latest.pth" in trained_folds.killed
    assert "checkpoint_final.pth" not in trained_folds.killed
    assert not [name for name in trained_folds.killed if name == "validation"]

    _, *logs = sorted((trained_folds.model / "fold_1").glob("training_log_*.txt"))
    continued = logs[-1].read_text()
    assert "Epoch 1" in continued and "Epoch 0" not in continued
    assert "Waiting" not in continued and "Resizing" not in continued
    assert "Training done" in trained_folds.continued

    checkpoint = torch.load(trained_folds.model / "fold_1" / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["current_epoch"] == 2
    assert checkpoint["trainer_name"] == "TinyHRMedSeg"
    losses = checkpoint["logging"]["train_losses"]
    assert len(losses) == 2 and np.isfinite(losses).all()


@pytest.mark.parametrize("fold", FOLDS)
def test_each_fold_is_validated_with_probabilities(nnunet, trained_folds, fold):
    validation = trained_folds.model / f"fold_{fold}" / "validation"
    splits = json.loads((nnunet.preprocessed / nnunet.dataset(RGB) / "splits_final.json").read_text())
    cases = splits[fold]["val"]
    assert [file.stem for file in validation.glob("*.png")] == cases
    assert [file.stem for file in validation.glob("*.npz")] == cases
    summary = json.loads((validation / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == len(cases)
    assert 0 <= summary["foreground_mean"]["Dice"] <= 1
    for case in cases:
        truth = io.imread(nnunet.raw / nnunet.dataset(RGB) / "labelsTr" / f"{case}.png")
        check_prediction(validation / f"{case}.png", validation / f"{case}.npz", truth.shape)


def test_validation_alone_gives_the_same_result(nnunet, trained_folds):
    validation = trained_folds.model / "fold_0" / "validation"
    (segmentation,) = validation.glob("*.png")
    before, summary = io.imread(segmentation), json.loads((validation / "summary.json").read_text())
    shutil.rmtree(validation)

    nnunet.run("nnUNetv2_train", RGB, "2d", 0, "-tr", "TinyHRMedSeg", "--val", "--npz", *CPU, **TINY)
    np.testing.assert_array_equal(io.imread(segmentation), before)
    assert segmentation.with_suffix(".npz").is_file()
    after = json.loads((validation / "summary.json").read_text())
    assert after["foreground_mean"]["Dice"] == pytest.approx(summary["foreground_mean"]["Dice"])


@pytest.mark.parametrize("case", NEW_CASES)
def test_new_cases_are_predicted_at_their_original_size(predicted, case):
    check_prediction(predicted / f"{case}.png", predicted / f"{case}.npz", NEW_CASES[case])


def check_prediction(segmentation_file: Path, probabilities_file: Path, size: tuple[int, int]) -> None:
    """Check that labels and probabilities have the size of the image and agree."""
    segmentation = io.imread(segmentation_file)
    probabilities = np.load(probabilities_file)["probabilities"]
    assert segmentation.shape == size
    assert set(np.unique(segmentation)) <= {0, 1}
    assert probabilities.shape == (2, 1, *size)
    assert probabilities.min() >= 0
    np.testing.assert_allclose(probabilities.astype(np.float64).sum(0), 1, atol=2e-3)
    np.testing.assert_array_equal(probabilities.argmax(0)[0], segmentation)


ENSEMBLE = "ensemble___TinyHRMedSeg__nnUNetPlans__2d___TinyUNet__nnUNetPlans__2d___0_1"


@pytest.fixture(scope="module")
def best(nnunet, trained_folds, unet) -> str:
    """Run nnU-Net's selection among HRMedSeg, a U-Net and their ensemble. Return its output."""
    return nnunet.run(
        "nnUNetv2_find_best_configuration", RGB, "-c", "2d", "-tr", "TinyHRMedSeg", "TinyUNet", "-f", *FOLDS, "-np", 1
    ).output


def test_best_configuration_is_selected_from_hrmedseg_and_a_unet(nnunet, trained_folds, best):
    results = nnunet.results / nnunet.dataset(RGB)
    information = json.loads((results / "inference_information.json").read_text())
    scores = information["all_results"]
    assert set(scores) == {"TinyHRMedSeg__nnUNetPlans__2d", "TinyUNet__nnUNetPlans__2d", ENSEMBLE}
    assert all(0 <= score <= 1 for score in scores.values())
    chosen = information["best_model_or_ensemble"]
    assert chosen["result_on_crossval_pre_pp"] == max(scores.values())
    assert Path(chosen["postprocessing_file"]).is_file()
    assert "nnUNetv2_predict" in (results / "inference_instructions.txt").read_text()
    assert "nnUNetv2_apply_postprocessing" in best

    # cross-validation of HRMedSeg has one case per fold, that of the ensemble the same two
    for folder in (trained_folds.model / "crossval_results_folds_0_1", results / "ensembles" / ENSEMBLE):
        summary = json.loads((folder / "summary.json").read_text())
        assert len(summary["metric_per_case"]) == len(FOLDS)


def test_predictions_are_postprocessed_and_evaluated(nnunet, best, predicted):
    results = nnunet.results / nnunet.dataset(RGB)
    chosen = json.loads((results / "inference_information.json").read_text())["best_model_or_ensemble"]
    plans, rules = chosen["some_plans_file"], chosen["postprocessing_file"]
    output = nnunet.folder / "postprocessed"
    nnunet.run(
        "nnUNetv2_apply_postprocessing", "-i", predicted, "-o", output, "-pp_pkl_file", rules, "-plans_json", plans,
        "-dataset_json", Path(plans).with_name("dataset.json"), "-np", 1,
    )  # fmt: skip
    assert {file.name for file in output.glob("*.png")} == {f"{case}.png" for case in NEW_CASES}
    raw = nnunet.raw / nnunet.dataset(RGB)
    validation = results / "TinyHRMedSeg__nnUNetPlans__2d" / "fold_0" / "validation"
    summary = nnunet.folder / "evaluated.json"
    nnunet.run(
        "nnUNetv2_evaluate_folder", raw / "labelsTr", validation, "-djfile", raw / "dataset.json", "-pfile", plans,
        "-o", summary, "-np", 1, "--chill",
    )  # fmt: skip
    own = json.loads((validation / "summary.json").read_text())
    assert json.loads(summary.read_text())["foreground_mean"] == own["foreground_mean"]


def test_models_and_ensemble_are_compared(nnunet, best):
    """The values are those of nnU-Net, and the report contains all of them."""
    output = nnunet.folder / "comparison"
    names = {"TinyHRMedSeg__nnUNetPlans__2d", "TinyUNet__nnUNetPlans__2d"}
    nnunet.run(
        "hrmedseg", "compare", "-d", RGB, "--baseline", "TinyUNet__nnUNetPlans__2d", "-o", output, "-np", 1,
        "--cost_images", 1, "-device", "cpu", **TINY,
    )  # fmt: skip
    content = json.loads((output / "comparison.json").read_text())
    scores = json.loads((nnunet.results / nnunet.dataset(RGB) / "inference_information.json").read_text())[
        "all_results"
    ]
    found = {model["name"]: model for model in content["models"]}
    assert names < set(found) and len(found) == 3
    (ensemble,) = set(found) - names
    for name, score in scores.items():
        model = found[ensemble if name == ENSEMBLE else name]
        assert model["measures"][content["classes"][0]]["Dice"]["mean"] == pytest.approx(score, abs=1e-12)
    cost = found["TinyHRMedSeg__nnUNetPlans__2d"]["cost"]
    assert cost["patch_size"] == [1024, 1024]
    assert cost["predict_seconds"] > 0 and cost["epoch_seconds"] > 0
    assert "data:image/jpeg" in (output / "report.html").read_text()


def test_hrmedseg_and_a_unet_can_be_ensembled(nnunet, predicted, unet):
    of_unet = predict(nnunet, "TinyUNet", nnunet.folder / "predicted_unet", **TINY_UNET)
    output = nnunet.folder / "ensemble"
    nnunet.run("nnUNetv2_ensemble", "-i", predicted, of_unet, "-o", output, "--save_npz", "-np", 1)
    for case, size in NEW_CASES.items():
        check_prediction(output / f"{case}.png", output / f"{case}.npz", size)
        members = [np.load(folder / f"{case}.npz")["probabilities"] for folder in (predicted, of_unet)]
        together = np.load(output / f"{case}.npz")["probabilities"]
        np.testing.assert_allclose(together, np.mean(members, axis=0, dtype=np.float32), atol=1e-3)


def test_exported_model_predicts_the_same_on_another_machine(nnunet, trained_folds, predicted, tmp_path):
    archive = tmp_path / "model.zip"
    nnunet.run(
        "nnUNetv2_export_model_to_zip", "-d", RGB, "-o", archive, "-c", "2d", "-tr", "TinyHRMedSeg", "-f", *FOLDS
    )
    elsewhere = NNUNet(tmp_path / "elsewhere")
    images = elsewhere.raw / nnunet.dataset(RGB) / "imagesTs"
    shutil.copytree(nnunet.raw / nnunet.dataset(RGB) / "imagesTs", images)
    elsewhere.run("nnUNetv2_install_pretrained_model_from_zip", archive)
    assert (elsewhere.model(RGB, "TinyHRMedSeg", "nnUNetPlans") / "plans.json").is_file()

    output = predict(elsewhere, "TinyHRMedSeg", tmp_path / "predicted", **TINY)
    for case in NEW_CASES:
        np.testing.assert_array_equal(io.imread(output / f"{case}.png"), io.imread(predicted / f"{case}.png"))
