"""Raw cases that are removed and changed while one fold is trained and another one starts, by commands."""

from __future__ import annotations

import hashlib
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from skimage import io

from tests.end_to_end.commands import CPU, FAILURE
from tests.end_to_end.conftest import PLANS, TINY
from tests.end_to_end.datasets import REGIONS, write_image

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def scenario(nnunet, regions_model, tmp_path_factory) -> SimpleNamespace:
    """Fold 0 waits after its first epoch. Meanwhile, a case is removed and fold 1 is trained; then the case is
    restored, another one is changed, and preprocessing is attempted. Fold 0 continues to its end. Finally, a case is
    added, and fold 1 is trained from the weights of fold 0."""
    copy = nnunet.copy((REGIONS,), tmp_path_factory.mktemp("scenario"))
    name = copy.dataset(REGIONS)
    raw, preprocessed = copy.raw / name, copy.preprocessed / name
    gone, changed = json.loads((preprocessed / "splits_final.json").read_text())[1]["train"][:2]
    proceed = copy.folder / "proceed"
    train = ("nnUNetv2_train", REGIONS, "2d")

    running = copy.start(*train, 0, "-p", PLANS, "-tr", "WaitingHRMedSeg", *CPU, CONTINUE=str(proceed), **TINY)
    running.wait_until((copy.model(REGIONS, "WaitingHRMedSeg", PLANS) / "fold_0" / "checkpoint_latest.pth").is_file)

    files = [raw / "imagesTr" / f"{gone}_0000.png", raw / "labelsTr" / f"{gone}.png"]
    contents = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    removed = copy.run(*train, 1, "-p", PLANS, "-tr", "TinyHRMedSeg", *CPU, **TINY).output

    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    label = raw / "labelsTr" / f"{changed}.png"
    write_image(np.fliplr(io.imread(label)), label)
    copied = (preprocessed / "gt_segmentations" / label.name).read_bytes()
    preprocess = ("nnUNetv2_preprocess", "-d", REGIONS, "-c", "2d", "-plans_name", PLANS, "-np", 1)
    refused = copy.run(*preprocess, expect=FAILURE).output

    proceed.touch()
    finished = running.wait().output
    recreated = copy.run(*preprocess).output

    for folder, ending in (("imagesTr", "_0000.png"), ("labelsTr", ".png")):
        shutil.copy(raw / folder / f"{changed}{ending}", raw / folder / f"added{ending}")
    weights = copy.model(REGIONS, "WaitingHRMedSeg", PLANS) / "fold_0" / "checkpoint_final.pth"
    started = ("-tr", "TinyHRMedSeg", *CPU, "-pretrained_weights", weights)
    added = copy.run(*train, 1, "-p", PLANS, *started, **TINY).output
    return SimpleNamespace(**locals())


def test_fold_is_trained_although_a_raw_case_is_missing(scenario):
    assert f"names cases that are missing: {scenario.gone}. Either" in scenario.removed
    assert "this training uses the existing canvas data" in scenario.removed
    assert "Training done" in scenario.removed and "Validation complete" in scenario.removed


def test_data_in_use_is_not_preprocessed_again(scenario):
    assert "is not replaced while a training uses it" in scenario.refused
    assert f"In use by WaitingHRMedSeg__{PLANS}__2d fold_0" in scenario.refused


def test_running_fold_is_completed(scenario):
    assert "Epoch 1" in scenario.finished and "Validation complete" in scenario.finished
    assert "no longer alive" not in scenario.finished


def test_data_is_recreated_afterwards(scenario):
    assert "Resizing" in scenario.recreated
    copy = scenario.preprocessed / "gt_segmentations" / scenario.label.name
    assert copy.read_bytes() == scenario.label.read_bytes() != scenario.copied


def test_case_that_no_fold_uses_is_reported(scenario):
    assert "in no fold of" in scenario.added and "added" in scenario.added
    assert "Training done" in scenario.added


def test_pretrained_weights_are_recorded(scenario):
    plans = json.loads((scenario.copy.model(REGIONS, "TinyHRMedSeg", PLANS) / "plans.json").read_text())
    started_from = plans["configurations"]["2d"]["encoder_started_from"]
    assert started_from["file"] == str(scenario.weights)
    assert started_from["sha256"] == hashlib.sha256(scenario.weights.read_bytes()).hexdigest()
