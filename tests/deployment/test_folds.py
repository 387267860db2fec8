"""Selection of the folds to export: requested and available ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_hrmedseg.deployment.folds import checkpoints_of
from nnunet_hrmedseg.errors import CheckpointError, PlanError

FINAL, BEST = "checkpoint_final.pth", "checkpoint_best.pth"


def model_with(folder: Path, *files: str) -> Path:
    for file in ("plans.json", "dataset.json", *files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


def folds(model: Path, wanted=None, checkpoint=FINAL, *, all_beside_others=True) -> list[str]:
    files = checkpoints_of(model, wanted, checkpoint, all_beside_others=all_beside_others)
    assert files == {fold: model / f"fold_{fold}" / checkpoint for fold in files}
    return list(files)


def test_folds_are_in_numerical_order_with_all_at_the_end(tmp_path):
    model = model_with(tmp_path, *(f"fold_{fold}/{FINAL}" for fold in ("all", 10, 2, 0)))
    assert folds(model) == ["0", "2", "10", "all"]
    assert folds(model, ["all", 10, "2", 2]) == ["2", "10", "all"]


def test_fold_all_is_combined_with_others_on_request(tmp_path):
    model = model_with(tmp_path, f"fold_0/{FINAL}", f"fold_all/{FINAL}")
    assert folds(model, all_beside_others=False) == ["0"]
    assert folds(model, ["all"], all_beside_others=False) == ["all"]
    (model / "fold_0" / FINAL).unlink()
    assert folds(model, all_beside_others=False) == ["all"]


def test_only_folds_with_the_checkpoint_are_found(tmp_path):
    model = model_with(tmp_path, f"fold_0/{FINAL}", f"fold_1/{BEST}", f"fold_x/{FINAL}", f"fold_3/{FINAL}")
    assert folds(model) == ["0", "3"]
    assert folds(model, None, BEST) == ["1"]


@pytest.mark.parametrize(
    ("wanted", "checkpoint", "kind", "message"),
    [
        (
            ["0", "7"],
            FINAL,
            CheckpointError,
            f"no {FINAL} of fold 7; the folds that have one: 0, 1; checkpoints of any fold: {FINAL}",
        ),
        (
            None,
            BEST,
            CheckpointError,
            f"no {BEST} of fold 0, 1, ... or all; the folds that have one: none; .* any fold: {FINAL}",
        ),
        ([], FINAL, PlanError, "No folds are given"),
        (None, f"../fold_0/{FINAL}", PlanError, "without folders"),
    ],
)
def test_missing_folds_and_checkpoints_are_reported(tmp_path, wanted, checkpoint, kind, message):
    model = model_with(tmp_path, f"fold_0/{FINAL}", f"fold_1/{FINAL}")
    with pytest.raises(kind, match=message):
        folds(model, wanted, checkpoint)


def test_folder_without_a_model_is_rejected(tmp_path):
    with pytest.raises(CheckpointError, match=r"plans\.json and dataset\.json"):
        folds(tmp_path)
