from pathlib import Path

import pytest

from nnunet_hrmedseg.errors import DataError, PlanError
from nnunet_hrmedseg.evaluation.comparison.matching import choose_baseline, match
from nnunet_hrmedseg.evaluation.comparison.models import Model


def model(name: str, folds: dict[str, str]) -> Model:
    """Return a model with a letter for each case of its folds."""
    return Model(name, {(fold,): {case: Path(f"{name}/{case}.png") for case in cases} for fold, cases in folds.items()})


TRUTH = {case: Path(f"{case}.png") for case in "abcdef"}
STOCK = model("nnUNetTrainer__p__2d", {"0": "abc", "1": "def"})
OURS = model("nnUNetTrainerHRMedSeg__p__2d", {"0": "abc", "1": "def"})


def test_stock_nnunet_is_the_default_baseline() -> None:
    assert choose_baseline([OURS, STOCK]) is STOCK
    assert choose_baseline([OURS]) is OURS
    assert choose_baseline([OURS, STOCK], "HRMedSeg") is OURS
    assert choose_baseline([OURS, STOCK], STOCK.name) is STOCK


def test_unknown_or_ambiguous_baseline_is_rejected() -> None:
    with pytest.raises(PlanError, match="matches no model. Available models: nnUNetTrainerHRMedSeg__p__2d"):
        choose_baseline([OURS, STOCK], "swin")
    with pytest.raises(PlanError, match="matches 2 models"):
        choose_baseline([OURS, STOCK], "nnUNetTrainer")


def test_models_with_the_same_cases_are_compared_on_all_folds() -> None:
    matched = match([OURS, STOCK], STOCK, TRUTH, None)
    assert matched.folds == ["0", "1"]
    assert list(matched.truth) == list("abcdef")
    assert set(matched.files) == {OURS, STOCK}
    assert matched.files[OURS]["d"] == Path("nnUNetTrainerHRMedSeg__p__2d/d.png")
    assert not matched.warnings


def test_single_fold_is_compared() -> None:
    matched = match([OURS, STOCK], STOCK, TRUTH, ["1"])
    assert list(matched.truth) == list("def")


def test_case_of_several_folds_is_reported() -> None:
    overlapping = model("overlapping", {"0": "abc", "1": "bdef"})
    (warning,) = match([STOCK, overlapping], STOCK, TRUTH, None).warnings
    assert warning.startswith("overlapping: b was validated by several of the folds 0, 1; the prediction of the last")
    assert not match([STOCK, overlapping], overlapping, TRUTH, ["0"]).warnings


def test_model_without_a_fold_is_excluded_with_a_warning() -> None:
    short = model("short", {"0": "abc"})
    matched = match([OURS, STOCK, short], STOCK, TRUTH, None)
    assert set(matched.files) == {OURS, STOCK}
    (warning,) = matched.warnings
    assert "short is not compared: it has the folds 0, the baseline nnUNetTrainer__p__2d has 0, 1" in warning
    assert set(match([OURS, STOCK, short], STOCK, TRUTH, ["0"]).files) == {OURS, STOCK, short}


def test_model_with_other_splits_is_excluded_with_a_warning() -> None:
    other = model("other", {"0": "abd", "1": "cef"})
    matched = match([STOCK, other], STOCK, TRUTH, ["0"])
    assert set(matched.files) == {STOCK}
    assert "only it: d; only the baseline: c" in matched.warnings[0]
    assert "splits_final.json" in matched.warnings[0]
    assert "Only one model is left" in matched.warnings[1]


def test_other_splits_of_the_same_cases_are_compared_over_all_cases() -> None:
    other = model("other", {"0": "abd", "1": "cef"})
    assert set(match([STOCK, other], STOCK, TRUTH, None).files) == {STOCK, other}


def test_predictions_without_truth_are_reported_and_excluded() -> None:
    matched = match([OURS, STOCK], STOCK, {case: TRUTH[case] for case in "abcde"}, None)
    assert list(matched.truth) == list("abcde")
    assert "1 predictions have no reference segmentation and are left out: f" in matched.warnings[0]
    with pytest.raises(DataError, match="None of the 6 cases"):
        match([OURS, STOCK], STOCK, {}, None)


def test_baseline_without_the_fold_is_an_error() -> None:
    with pytest.raises(DataError, match="has the validated folds 0, 1, but not 4"):
        match([OURS, STOCK], STOCK, TRUTH, ["4"])


def test_baseline_without_validated_folds_is_an_error() -> None:
    untrained = model("untrained", {})
    for folds in (None, ["0"]):
        with pytest.raises(DataError, match="untrained has no validated fold"):
            match([untrained], untrained, TRUTH, folds)
