"""Sharing a trained model: nothing private is shared, and nothing hostile is opened."""

from pathlib import Path

import pytest
import torch

from nnunet_hrmedseg.deployment.private_texts import PrivacyFilter, iter_strings
from nnunet_hrmedseg.deployment.sharing import share_model
from nnunet_hrmedseg.errors import CheckpointError, DataError
from nnunet_hrmedseg.io.checkpoints import load_checkpoint
from tests.deployment.trained_models import CASES, model_in
from tests.teachers.tiny_teachers import Payload


def test_files_contain_no_private_data(trained, tmp_path):
    shared = model_in(share_model(model=trained(), output=tmp_path / "shared").path)
    private = [*CASES[:3], "somebody", "Somebody", "somewhere", str(tmp_path), "imagesTr", "ext_secret"]
    for file in shared.rglob("*"):
        assert not [name for name in private if name in str(file.relative_to(shared))]
        if file.suffix == ".pth":
            content = load_checkpoint(file)
            assert content.keys() == {
                "network_weights", "trainer_name", "init_args", "inference_allowed_mirroring_axes"
            }  # fmt: skip
            assert content["init_args"] == {"configuration": "2d"}
            texts = [*iter_strings(content)]
        else:
            texts = [file.read_text()] if file.is_file() else []
        assert not [name for name in private for text in texts if name in text], file
    there = {file.relative_to(shared).as_posix() for file in shared.rglob("*") if file.is_file()}
    of_folds = {f"fold_{n}/{name}" for n in (0, 1) for name in ("checkpoint_final.pth", "validation/summary.json")}
    assert there == {"plans.json", "dataset.json", "model_card.json", "README.md", "LICENSE.txt"} | of_folds


def test_hostile_checkpoint_is_not_opened(trained, tmp_path):
    folder = trained()
    torch.save(Payload(tmp_path / "executed"), folder / "fold_1" / "checkpoint_final.pth")
    with pytest.raises(CheckpointError, match=r"fold_1/checkpoint_final\.pth was not loaded: it holds"):
        share_model(model=folder, output=tmp_path / "shared")
    (folder / "fold_1" / "checkpoint_final.pth").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(CheckpointError, match=r"fold_1/checkpoint_final\.pth is damaged"):
        share_model(model=folder, output=tmp_path / "shared")
    torch.save({"network_weights": {}}, folder / "fold_1" / "checkpoint_final.pth")
    with pytest.raises(CheckpointError, match="is not a checkpoint of nnU-Net v2"):
        share_model(model=folder, output=tmp_path / "shared")
    assert not (tmp_path / "executed").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["preprocessed", "results"]


@pytest.mark.parametrize(
    "more, message",
    [
        ({"labels": {"background": 0, "see /data/somebody/notes": 1, "b": 2}}, "dataset.json would tell a path"),
        ({"channel_names": {"0": "patient_0417.png", "1": "b", "2": "c"}}, "dataset.json would tell the name"),
    ],
)
def test_private_entries_that_cannot_be_removed_prevent_sharing(trained, tmp_path, more, message):
    with pytest.raises(DataError, match=f"Nothing was shared: {message}"):
        share_model(model=trained(**more), output=tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize("name, home", [("root", "/data"), ("nnunet", "/home/nnunet"), ("model", "/home/model")])
def test_names_of_users_that_are_ordinary_words_do_not_prevent_sharing(trained, tmp_path, monkeypatch, name, home):
    monkeypatch.setenv("LOGNAME", name)
    monkeypatch.setenv("HOME", home)
    folder = trained(description="the data of a model for nnunet")
    shared = model_in(share_model(model=folder, output=tmp_path / "shared").path)
    assert "the data of a model for nnunet" in (shared / "dataset.json").read_text()


def test_license_that_is_a_path_prevents_sharing(trained, tmp_path):
    with pytest.raises(DataError, match="LICENSE.txt would tell a path"):
        share_model(model=trained(), output=tmp_path / "shared", license="/home/me/license.txt")


def test_test_data_contains_private_texts(trained):
    folder = Path(trained())
    private = PrivacyFilter(CASES)
    content = load_checkpoint(folder / "fold_0" / "checkpoint_final.pth")
    assert sum(private.find(text) is not None for text in iter_strings(content)) > 10
