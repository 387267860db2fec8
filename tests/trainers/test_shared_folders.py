"""Trainings in folders that several users share, or that are read-only."""

import os
import shutil

import pytest
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as module

from nnunet_hrmedseg.errors import SetupError
from tests.trainers.conftest import LABELS
from tests.trainers.tiny_trainers import _log_of, _trainer
from tests.users import ANNA, BEN, GROUP, acting_as, share, shared_folder

__all__ = ["shared_folder"]


def test_folds_of_nnunet_are_used_where_they_cannot_be_saved(dataset, monkeypatch):
    description = dataset(LABELS)
    trainer = _trainer(description)
    trainer.initialize()
    expected = trainer.do_split()
    splits = os.path.join(trainer.preprocessed_dataset_folder_base, "splits_final.json")
    os.remove(splits)
    save = module.save_json

    def refuse(content, file, **options):
        if str(file) == splits:
            raise PermissionError(13, "Permission denied", splits)
        save(content, file, **options)

    monkeypatch.setattr(module, "save_json", refuse)
    assert trainer.do_split() == expected
    trainer.get_tr_and_val_datasets()
    assert not os.path.exists(splits) and f"{splits} cannot be written (Permission denied)" in _log_of(trainer)
    assert "in no fold of" not in _log_of(trainer)


class TestUsers:
    @pytest.fixture
    def tmp_path(self, shared_folder):
        """The folder of the fixture `dataset`."""
        return shared_folder

    @pytest.fixture
    def description(self, dataset, monkeypatch, tmp_path):
        """nnU-Net's folders of one user; nnU-Net's modules are imported, which others may not be able to read."""
        monkeypatch.setattr(module, "sleep", lambda seconds: None)
        description = dataset(LABELS)
        for _ in range(2):
            trainer = _trainer(description)
            trainer.on_train_start()
            trainer.on_train_end()
        for entry in ("nnUNet_preprocessed", "nnUNet_results"):
            for folder, _, files in os.walk(tmp_path / entry):
                share(folder, 0o2755)
                for file in files:
                    share(os.path.join(folder, file), 0o644)
        return description

    def test_training_from_a_read_only_copy(self, description, tmp_path):
        os.remove(tmp_path / "nnUNet_preprocessed" / "Dataset001_Test" / "splits_final.json")
        results = tmp_path / "nnUNet_results"
        shutil.rmtree(results)
        results.mkdir()
        share(results)
        with acting_as(BEN):
            trainer = _trainer(description)
            trainer.on_train_start()
            trainer.on_train_end()
        assert "Warning" not in _log_of(trainer)
        assert os.path.isfile(os.path.join(trainer.output_folder, "checkpoint_final.pth"))

    def test_next_fold_of_a_model_of_another_user(self, description, tmp_path):
        for folder, _, _ in os.walk(tmp_path / "nnUNet_results"):
            share(folder)
        with acting_as(BEN):
            trainer = _trainer(description, fold=1)
            trainer.on_train_start()
            trainer.on_train_end()
        plans = os.stat(os.path.join(trainer.output_folder_base, "plans.json"))
        assert (plans.st_uid, plans.st_gid) == (BEN, GROUP)

    def test_checkpoint_that_another_user_cannot_read(self, description):
        checkpoint = os.path.join(_trainer(description).output_folder, "checkpoint_final.pth")
        os.chmod(checkpoint, 0o600)
        with acting_as(BEN), pytest.raises(SetupError, match=f"checkpoint_final.pth cannot be read .* user {ANNA} "):
            _trainer(description).load_checkpoint(checkpoint)

    def test_model_of_another_user(self, description):
        with acting_as(BEN):
            trainer = _trainer(description)
            with pytest.raises(SetupError, match=f"fold_0, the folder of this fold, is not .* user {ANNA}: ask"):
                trainer.on_train_start()
            with pytest.raises(SetupError, match=f"fold_1 cannot be read or written.* The folder .* user {ANNA} "):
                _trainer(description, fold=1)
