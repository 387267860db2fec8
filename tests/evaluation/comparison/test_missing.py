import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.evaluation.comparison import missing
from tests.evaluation.comparison.folders import DATASET, write_dataset, write_model


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """nnUNetTrainer has validated folds 0 and 1; what is trained is noted and not done."""
    write_dataset(tmp_path)
    folder = write_model(tmp_path, "nnUNetTrainer__nnUNetPlans__2d", 0)
    for fold in (0, 1):
        (folder / f"fold_{fold}" / "validation" / "summary.json").write_text(json.dumps({"metric_per_case": [{}]}))
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(missing, "train_fold", lambda *args, **options: calls.append((*args, options)))
    return calls


def arguments(**changes: Any) -> argparse.Namespace:
    given = {"tr": ["nnUNetTrainer", "nnUNetTrainerHRMedSeg"], "p": None, "c": None, "f": None, "npz": False}
    return argparse.Namespace(**{**given, "epochs": None, "minutes": 10.0, "device": "cpu", **changes})


def test_only_what_is_missing_is_trained_all_with_the_same_budget(trained: list[tuple[Any, ...]]) -> None:
    missing.train_missing(arguments(f=["0", "1", "2"]), DATASET)
    assert [call[1:5] for call in trained] == [
        ("2d", "2", "nnUNetTrainer", "nnUNetPlans"),
        *(("2d", fold, "nnUNetTrainerHRMedSeg", "nnUNetPlans") for fold in ("0", "1", "2")),
    ]
    assert {call[0] for call in trained} == {DATASET}
    assert all(call[5] == {"epochs": None, "minutes": 10.0, "device": "cpu", "npz": False} for call in trained)


def test_folds_are_those_of_the_splits(trained: list[tuple[Any, ...]], tmp_path: Path) -> None:
    assert missing.folds_of_splits(tmp_path) == ["0", "1", "2", "3", "4"]
    (tmp_path / "splits_final.json").write_text(json.dumps([{}, {}, {}]))
    assert missing.folds_of_splits(tmp_path) == ["0", "1", "2"]


def test_probabilities_that_are_missing_are_made(trained: list[tuple[Any, ...]]) -> None:
    missing.train_missing(arguments(tr=["nnUNetTrainer"], f=["0"], npz=True), DATASET)
    assert len(trained) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tr": None}, "say which trainers"),
        ({"minutes": None}, "give one of the two"),
        ({"epochs": 5}, "give one of the two"),
        ({"minutes": -1.0}, "-1.0 minutes"),
    ],
)
def test_mistakes_are_said_before_anything_is_trained(
    trained: list[tuple[Any, ...]], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(HRMedSegError, match=said):
        missing.train_missing(arguments(**changes), DATASET)
    assert trained == []
