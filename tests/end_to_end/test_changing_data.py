"""Raw cases that go and change while one fold is trained and another is started, in commands."""

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
def life(nnunet, regions_model, tmp_path_factory) -> SimpleNamespace:
    """Fold 0 waits after its first epoch. Meanwhile a case is removed and fold 1 trained; then the case is put back,
    another one changed, and preprocessing tried. Fold 0 continues to its end. At last a case is added, and fold 1 is
    trained from the weights of fold 0."""
    copy = nnunet.copy((REGIONS,), tmp_path_factory.mktemp("life"))
    name = copy.dataset(REGIONS)
    raw, preprocessed = copy.raw / name, copy.preprocessed / name
    gone, changed = json.loads((preprocessed / "splits_final.json").read_text())[1]["train"][:2]
    go_on = copy.folder / "go_on"
    train = ("nnUNetv2_train", REGIONS, "2d")

    running = copy.start(*train, 0, "-p", PLANS, "-tr", "WaitingHRMedSeg", *CPU, GO_ON=str(go_on), **TINY)
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

    go_on.touch()
    finished = running.wait().output
    made_again = copy.run(*preprocess).output

    for folder, ending in (("imagesTr", "_0000.png"), ("labelsTr", ".png")):
        shutil.copy(raw / folder / f"{changed}{ending}", raw / folder / f"added{ending}")
    weights = copy.model(REGIONS, "WaitingHRMedSeg", PLANS) / "fold_0" / "checkpoint_final.pth"
    started = ("-tr", "TinyHRMedSeg", *CPU, "-pretrained_weights", weights)
    added = copy.run(*train, 1, "-p", PLANS, *started, **TINY).output
    return SimpleNamespace(**locals())


def test_a_fold_is_trained_though_a_raw_case_is_gone(life):
    assert f"names cases that are missing: {life.gone}. Either" in life.removed
    assert "this training uses the existing canvas data" in life.removed
    assert "Training done" in life.removed and "Validation complete" in life.removed


def test_data_is_not_preprocessed_again_while_it_is_trained_with(life):
    assert "is not replaced while a training uses it" in life.refused
    assert f"In use by WaitingHRMedSeg__{PLANS}__2d fold_0" in life.refused


def test_the_running_fold_ends_well(life):
    assert "Epoch 1" in life.finished and "Validation complete" in life.finished
    assert "no longer alive" not in life.finished


def test_the_data_is_made_again_afterwards(life):
    assert "Resizing" in life.made_again
    copy = life.preprocessed / "gt_segmentations" / life.label.name
    assert copy.read_bytes() == life.label.read_bytes() != life.copied


def test_a_case_that_no_fold_uses_is_named(life):
    assert "in no fold of" in life.added and "added" in life.added
    assert "Training done" in life.added


def test_weights_that_a_training_started_from_are_recorded(life):
    plans = json.loads((life.copy.model(REGIONS, "TinyHRMedSeg", PLANS) / "plans.json").read_text())
    started_from = plans["configurations"]["2d"]["encoder_started_from"]
    assert started_from["file"] == str(life.weights)
    assert started_from["sha256"] == hashlib.sha256(life.weights.read_bytes()).hexdigest()
