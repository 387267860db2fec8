import json
from pathlib import Path
from typing import Any

import pytest

from nnunet_hrmedseg.errors import PlanError
from nnunet_hrmedseg.evaluation.comparison import missing
from nnunet_hrmedseg.evaluation.comparison.inputs import TrainedModels
from tests.evaluation.comparison.folders import DATASET, write_dataset, write_model


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """nnUNetTrainer has validated folds 0 and 1; trainings are recorded instead of run."""
    write_dataset(tmp_path)
    folder = write_model(tmp_path, "nnUNetTrainer__nnUNetPlans__2d", 0)
    for fold in (0, 1):
        (folder / f"fold_{fold}" / "validation" / "summary.json").write_text(json.dumps({"metric_per_case": [{}]}))
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(missing, "train_fold", lambda *args, **options: calls.append((*args, options)))
    return calls


def train(
    trainers: list[str] | None = ["nnUNetTrainer", "nnUNetTrainerHRMedSeg"],  # noqa: B006
    folds: list[str] | None = None,
    **training: Any,
) -> None:
    models = TrainedModels(DATASET, trainers=trainers, folds=folds)
    missing.train_missing(models, missing.TrainingOptions(**{"minutes": 10.0, **training}), "cpu")


def test_only_missing_folds_are_trained_with_one_budget(trained: list[tuple[Any, ...]]) -> None:
    train(folds=["0", "1", "2"])
    assert [call[1:5] for call in trained] == [
        ("2d", "2", "nnUNetTrainer", "nnUNetPlans"),
        *(("2d", fold, "nnUNetTrainerHRMedSeg", "nnUNetPlans") for fold in ("0", "1", "2")),
    ]
    assert {call[0] for call in trained} == {DATASET}
    assert all(call[5] == {"epochs": None, "minutes": 10.0, "device": "cpu", "npz": False} for call in trained)


def test_validation_that_was_stopped_is_repeated(trained: list[tuple[Any, ...]], tmp_path: Path) -> None:
    (summary,) = (tmp_path / "nnUNet_results").rglob("fold_1/validation/summary.json")
    summary.write_text('{"metric_per_case": [{"metrics"')
    train(["nnUNetTrainer"], ["0", "1"])
    assert [call[2] for call in trained] == ["1"]


def test_folds_are_those_of_the_splits(trained: list[tuple[Any, ...]], tmp_path: Path) -> None:
    assert missing.folds_of_splits(tmp_path) == ["0", "1", "2", "3", "4"]
    (tmp_path / "splits_final.json").write_text(json.dumps([{}, {}, {}]))
    assert missing.folds_of_splits(tmp_path) == ["0", "1", "2"]


def test_missing_probabilities_are_predicted(trained: list[tuple[Any, ...]]) -> None:
    train(["nnUNetTrainer"], ["0"], npz=True)
    assert len(trained) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainers": None}, "-tr"),
        ({"minutes": None}, "give one of the two"),
        ({"epochs": 5}, "give one of the two"),
        ({"minutes": -1.0}, "-1.0 minutes"),
    ],
)
def test_invalid_options_are_reported_before_training(
    trained: list[tuple[Any, ...]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        train(**changes)
    assert trained == []
