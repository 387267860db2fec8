"""benchmarks/papers_setting.py without nnU-Net: order and parts of trainings, and recorded results."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

import numpy as np
import pytest
import torch
from skimage import io

from benchmarks import papers_setting
from nnunet_hrmedseg.errors import DataError

SPLITS = {"train": ["a", "b", "c"], "valid": ["d"], "test": ["e"]}


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "source"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
        for name in "abcde":
            pixels = np.full((6, 8), 255 if name != "a" else 1, np.uint8)
            io.imsave(folder / part / f"{name}.png", pixels, check_contrast=False)
    return folder


@pytest.fixture
def run(images, tmp_path):
    (tmp_path / "splits.json").write_text(json.dumps(SPLITS))

    def build(minutes=1.0):
        return papers_setting.Run(
            argparse.Namespace(
                **{"images": images, "splits": tmp_path / "splits.json", "work": tmp_path / "work", "minutes": minutes},
                **{"name": "polyps", "number": 951, "trainer": "nnUNetTrainerHRMedSeg", "canvas": 64, "batch_size": 2},
                **{"passes": 4, "recompute": False, "device": "cpu", "commit": "abc"},
            )
        )

    return build


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is not a JSON file with the lists"),
        ({"train": ["a"], "test": ["b"]}, "is not a JSON file with the lists"),
        ({**SPLITS, "test": ["a"]}, "lists a more than once"),
        ({**SPLITS, "test": ["z"]}, "no image with a mask for the part 'test'"),
    ],
)
def test_invalid_splits_are_rejected(images, tmp_path, content, message):
    (tmp_path / "splits.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        papers_setting.checked_splits(tmp_path / "splits.json", images)


def test_names_without_an_image_are_counted(images, tmp_path, capsys):
    (tmp_path / "splits.json").write_text(json.dumps({**SPLITS, "train": ["a", "x", "y"]}))
    assert papers_setting.checked_splits(tmp_path / "splits.json", images)["train"] == ["a"]
    assert "2 of 3 images of the part 'train' are missing" in capsys.readouterr().out


def test_raw_dataset_has_masks_of_0_and_1(run):
    made = run()
    papers_setting.write_raw(made.args.images, made.raw, made.splits)
    assert {path.name for path in (made.raw / "imagesTr").iterdir()} == {f"{name}_0000.png" for name in "abcd"}
    assert [path.name for path in (made.raw / "labelsTs").iterdir()] == ["e.png"]
    assert all(io.imread(path).max() == 1 for path in (made.raw / "labelsTr").iterdir())
    assert io.imread(made.raw / "imagesTr" / "a_0000.png").shape == (6, 8, 3)
    assert json.loads((made.raw / "dataset.json").read_text())["numTraining"] == 4


def test_training_in_several_parts(run, monkeypatch):
    calls = []

    def command(self, name, *arguments):
        calls.append([name, *map(str, arguments)])
        self.fold.mkdir(parents=True, exist_ok=True)
        passes = 2 * len(calls)
        finished = passes >= self.args.passes
        torch.save({"current_epoch": passes}, self.fold / f"checkpoint_{'final' if finished else 'latest'}.pth")
        if not finished:
            raise papers_setting.TimeIsOver

    monkeypatch.setattr(papers_setting.Run, "command", command)
    with pytest.raises(papers_setting.TimeIsOver):
        run().train()
    run().train()
    run().train()  # finished: nothing is done
    assert [call[-1] for call in calls] == ["cpu", "--c"]
    assert calls[0][:6] == ["nnUNetv2_train", "951", "2d", "0", "-tr", "nnUNetTrainerHRMedSegPasses"]
    result = run().result({"dice": 0.9})
    assert [piece["passes"] for piece in result["pieces"]] == [[0, 2], [2, 4]]
    assert all(piece["commit"] == "abc" and "torch" in piece["versions"] for piece in result["pieces"])
    assert result["iterations"] == 2 * 4 and result["images"] == {"train": 3, "valid": 1, "test": 1}


def test_command_ends_when_the_time_is_over(run, tmp_path, monkeypatch):
    monkeypatch.setattr(papers_setting.shutil, "which", lambda *_, **__: sys.executable)
    made = run(minutes=0)
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    began = time.monotonic()
    with pytest.raises(papers_setting.TimeIsOver):
        made.command("python", "-S", "-c", code)
    assert time.monotonic() - began < 20
    if (tmp_path / "pid").exists():
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)


def test_one_pass_is_one_epoch(monkeypatch):
    monkeypatch.setenv("PAPERS_SETTING_PASSES", "7")
    monkeypatch.setenv("PAPERS_SETTING_ITERATIONS", "31")
    from benchmarks.recipes import papers_setting as recipes
    from nnunet_hrmedseg.trainers.hrmedseg import nnUNetTrainerHRMedSeg

    for name in papers_setting.TRAINERS:
        trainer = getattr(recipes, f"{name}Passes")
        assert issubclass(trainer, nnUNetTrainerHRMedSeg)
        monkeypatch.setattr(nnUNetTrainerHRMedSeg, "__init__", lambda self, *arguments: None)
        made = object.__new__(trainer)
        trainer.__init__(made, {}, "2d", 0, {})
        assert (made.num_epochs, made.num_iterations_per_epoch) == (7, 31)
        assert made.perform_actual_validation() is None
