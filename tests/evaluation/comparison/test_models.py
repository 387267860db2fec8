import shutil
from pathlib import Path

import pytest

from nnunet_hrmedseg.errors import DataError
from nnunet_hrmedseg.evaluation.comparison.models import ensembles, prediction_folder, trained_models
from tests.evaluation.comparison.folders import DATASET, write_dataset, write_model

STOCK, OURS = "nnUNetTrainer__nnUNetPlans__2d", "nnUNetTrainerHRMedSeg__nnUNetPlans__2d"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write_dataset(tmp_path)
    write_model(tmp_path, STOCK, 1)
    write_model(tmp_path, OURS, 0)
    return tmp_path / "nnUNet_results" / DATASET


def test_all_models_are_found_with_their_folds_and_cases(results: Path) -> None:
    models = trained_models(results, ".png")
    assert [model.name for model in models] == [STOCK, OURS]
    assert models[0].folds == ["0", "1"]
    assert sorted(models[0].predictions(["0", "1"])) == [f"case{i}" for i in range(6)]
    assert sorted(models[0].predictions(["1"])) == ["case3", "case4", "case5"]
    assert models[0].predictions(["0", "2"]) is None


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"trainers": ["nnUNetTrainer"]}, [STOCK]),
        ({"plans": ["nnUNetPlans"]}, [STOCK, OURS]),
        ({"plans": ["other"]}, []),
        ({"configurations": ["3d_fullres"]}, []),
        ({"trainers": ["nnUNetTrainer", "nnUNetTrainerHRMedSeg"], "configurations": ["2d"]}, [STOCK, OURS]),
    ],
)
def test_filters_match_complete_names(results: Path, wanted: dict[str, list[str]], found: list[str]) -> None:
    assert [model.name for model in trained_models(results, ".png", **wanted)] == found


def test_fold_all_and_folds_without_validation_are_reported(results: Path) -> None:
    (results / STOCK / "fold_all" / "validation").mkdir(parents=True)
    (results / STOCK / "fold_3").mkdir()
    notes = trained_models(results, ".png")[0].notes
    assert len(notes) == 2
    assert "fold 3 is not validated yet" in notes[0]
    assert "fold_all" in notes[1]


def test_copy_of_a_fold_under_another_name_is_left_out(results: Path) -> None:
    shutil.copytree(results / STOCK / "fold_0", results / STOCK / "fold_0_first")
    model = trained_models(results, ".png")[0]
    assert model.folds == ["0", "1"]
    assert {file.parents[1].name for file in model.predictions(model.folds).values()} == {"fold_0", "fold_1"}
    assert model.notes == ["fold_0_first is not a fold by its name and is left out"]


def test_folds_are_in_numerical_order(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    write_model(tmp_path, STOCK, 0, {10: [0], 2: [1], 0: [2]})
    assert trained_models(tmp_path / "nnUNet_results" / DATASET, ".png")[0].folds == ["0", "2", "10"]


def test_ensembles_combine_all_folds(results: Path) -> None:
    folder = results / "ensembles" / f"ensemble___{STOCK}___{OURS}___0_1"
    folder.mkdir(parents=True)
    (folder / "case0.png").touch()
    (folder / "summary.json").touch()
    (model,) = ensembles(results, ".png")
    assert model.name == f"ensemble of {STOCK} and {OURS}"
    assert list(model.predictions(["0", "1"])) == ["case0"]
    assert model.predictions(["0"]) is None
    assert trained_models(results, ".png") and "ensembles" not in [m.name for m in trained_models(results, ".png")]


def test_folder_of_predictions_has_a_name(results: Path) -> None:
    folder = results / STOCK / "fold_0" / "validation"
    model = prediction_folder("mine", folder, ".png")
    assert model.name == "mine" and sorted(model.predictions(["all"])) == ["case0", "case1", "case2"]


@pytest.mark.parametrize("ending", [".nii.gz", ".png"])
def test_empty_folder_is_reported(tmp_path: Path, ending: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "readme.txt").touch()
    with pytest.raises(DataError, match=r"readme\.txt"):
        prediction_folder("there", tmp_path / "there", ending)
    with pytest.raises(DataError, match="there is no folder"):
        prediction_folder("a", tmp_path / "nowhere", ending)
