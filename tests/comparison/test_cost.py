import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from torch import nn

from nnunet_hrmedseg.comparison.cost import (
    as_ours_train,
    cache_tile_weights,
    costs,
    epochs_of_logs,
    length_of_training,
)
from nnunet_hrmedseg.trainers.losses import LARGE_STRIP, SMALL_STRIP
from nnunet_hrmedseg.trainers.trainer import nnUNetTrainerHRMedSeg


def test_epochs_are_read_from_all_logs_of_a_fold(tmp_path: Path) -> None:
    line = "2026-01-01 10:00:00.000000: Epoch time: {} s\n"
    (tmp_path / "training_log_2026_1_1_10_00_00.txt").write_text(line.format(30.5) + "Epoch 1\n" + line.format(10))
    (tmp_path / "training_log_2026_1_2_10_00_00.txt").write_text(line.format(11.25))
    assert epochs_of_logs(tmp_path) == (11.25, 3)
    assert epochs_of_logs(tmp_path / "nowhere") == (None, 0)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"training_seconds": 1}'])
def test_a_budget_file_that_says_nothing_is_no_length(tmp_path: Path, content: str) -> None:
    (tmp_path / "budget.json").write_text(content)
    assert length_of_training(tmp_path) == (None, None)


def test_the_length_of_a_training_within_a_budget(tmp_path: Path) -> None:
    (tmp_path / "budget.json").write_text(json.dumps({"training_seconds": 601.5, "iterations": 432}))
    assert length_of_training(tmp_path) == (601.5, 432)
    assert length_of_training(tmp_path / "nowhere") == (None, None)


def test_a_model_that_cannot_be_loaded_is_a_sentence(tmp_path: Path) -> None:
    found = costs({"gone": (tmp_path / "gone", "0")}, [], torch.device("cpu"), [])
    assert "checkpoint_best.pth cannot be read" in str(found["gone"])


@pytest.mark.parametrize(("recompute", "strip"), [(True, SMALL_STRIP), (False, LARGE_STRIP)])
def test_memory_is_counted_with_the_strips_that_the_trainer_would_take(recompute: bool, strip: int) -> None:
    trainable = as_ours_train(nnUNetTrainerHRMedSeg, nn.Conv2d(3, 2, 1), recompute)
    assert trainable.loss.logits_in_a_strip == strip


def predictor_of_canvas(side: int) -> nnUNetPredictor:
    predictor = nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.network = nn.Conv2d(1, 2, 1)
    predictor.configuration_manager = SimpleNamespace(patch_size=[side, side])
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=2)
    return predictor


def test_no_model_is_charged_with_tile_weights_that_others_pushed_out() -> None:
    compute_gaussian.cache_clear()
    predictors = [predictor_of_canvas(side) for side in (16, 24, 32)]  # one more than nnU-Net keeps
    missed = []
    for predictor in [*predictors, *predictors]:
        cache_tile_weights(predictor)
        before = compute_gaussian.cache_info()
        predictor.predict_sliding_window_return_logits(torch.zeros(1, 1, 16, 16))
        after = compute_gaussian.cache_info()
        assert after.hits + after.misses > before.hits + before.misses, "the weights were not asked for"
        missed.append(after.misses - before.misses)
    assert missed == [0] * 6
