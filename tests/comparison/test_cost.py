import json
from pathlib import Path

import pytest
import torch

from nnunet_hrmedseg.comparison.cost import costs, epochs_of_logs, length_of_training


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
