"""Checkpoints, folds and locks of the trainers, and continued trainings."""

import errno
import gc
import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch

from nnunet_hrmedseg.errors import CheckpointError, DataError, SetupError
from nnunet_hrmedseg.io import locks
from nnunet_hrmedseg.preprocessing.canvas_dataset import ensure_canvas_data
from nnunet_hrmedseg.preprocessing.preprocessor import HRMedSegPreprocessor
from nnunet_hrmedseg.registration.names import EPOCHS, TRAINERS
from nnunet_hrmedseg.trainers import variants
from tests.trainers.conftest import LABELS
from tests.trainers.tiny_trainers import CPU, _log_of, _plans, _trainer


def test_checkpoint_is_complete_or_missing(dataset, monkeypatch):
    trainer = _trainer(dataset(LABELS))
    trainer.on_train_start()
    file = os.path.join(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(file)
    first = open(file, "rb").read()

    def killed(checkpoint, filename):
        with open(filename, "wb") as handle:
            handle.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.save_checkpoint(file)
    assert open(file, "rb").read() == first


@pytest.mark.parametrize("name, value", [("local_rank", 1), ("disable_checkpointing", True)])
def test_process_that_does_not_save_keeps_the_checkpoint(dataset, name, value):
    trainer = _trainer(dataset(LABELS))
    trainer.on_train_start()
    file = Path(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(str(file))
    first = file.read_bytes()
    half = file.with_name("checkpoint_latest.pth.incomplete")
    half.write_bytes(b"half")  # from a killed training, or currently written by another process
    setattr(trainer, name, value)
    trainer.save_checkpoint(str(file))
    assert file.read_bytes() == first and half.read_bytes() == b"half"


def test_full_disk_keeps_the_last_checkpoint_without_a_partial_file(dataset, monkeypatch):
    trainer = _trainer(dataset(LABELS))
    trainer.on_train_start()
    file = Path(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(str(file))
    first = file.read_bytes()

    def fail(error, checkpoint, filename):
        Path(filename).write_bytes(b"half")
        raise error

    for error, message in (
        (OSError(errno.ENOSPC, "No space left on device"), "No space left.*Make room.*--c"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied.*Permit writing there.*--c"),
    ):
        monkeypatch.setattr(torch, "save", partial(fail, error))
        with pytest.raises(SetupError, match=rf"(?s)checkpoint_latest.pth could not be saved .*{message}"):
            trainer.save_checkpoint(str(file))
    assert file.read_bytes() == first
    assert not list(file.parent.glob("*.incomplete"))


@pytest.mark.parametrize("length", [0, 100, -100], ids=["empty", "head", "without its end"])
def test_truncated_checkpoint_is_reported(dataset, length):
    description = dataset(LABELS)
    trainer = _trainer(description)
    trainer.on_train_start()
    file = Path(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(str(file))
    trainer.save_checkpoint(str(file.with_name("checkpoint_best.pth")))
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"(?s)checkpoint_latest.pth cannot be loaded.*from checkpoint_best.pth"):
        _trainer(description).load_checkpoint(str(file))


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("out of memory"), OSError(errno.ENOSPC, "No space left on device")]
)
@pytest.mark.parametrize("failing", ["initialize", "load_state_dict"])
def test_errors_of_the_machine_are_not_taken_for_a_damaged_checkpoint(dataset, monkeypatch, error, failing):
    description = dataset(LABELS)
    trainer = _trainer(description)
    trainer.on_train_start()
    file = Path(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(str(file))
    continued = _trainer(description)
    continued.was_initialized = False

    def fail(*args, **options):
        raise error

    monkeypatch.setattr(type(trainer) if failing == "initialize" else torch.nn.Module, failing, fail)
    with pytest.raises(type(error)) as raised:
        continued.load_checkpoint(str(file))
    assert raised.value is error


def test_second_training_of_a_fold_is_rejected(dataset):
    description = dataset(LABELS)
    first, second, other = _trainer(description), _trainer(description), _trainer(description, fold=1)
    first.on_train_start()
    with pytest.raises(SetupError, match="Another process is training this fold"):
        second.on_train_start()
    other.on_train_start()
    first.on_train_end()
    second.on_train_start()


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_second_training_of_a_fold_without_file_locks_is_rejected(dataset, monkeypatch, error):
    fcntl = pytest.importorskip("fcntl")

    def flock(descriptor, operation):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)
    for name, seconds in (("LEASE_SECONDS", 1.2), ("HEARTBEAT_SECONDS", 0.2), ("POLL_SECONDS", 0.1)):
        monkeypatch.setattr(locks, name, seconds)
    description = dataset(LABELS)
    first, second = _trainer(description), _trainer(description)
    first.on_train_start()
    with pytest.raises(SetupError, match=r"Another process is training this fold.*Delete that file") as held:
        second.on_train_start()
    marker = Path(first.output_folder, "training.lock.holder")
    assert str(marker) in str(held.value) and marker.is_file()
    first.on_train_end()
    assert not marker.exists()
    second.on_train_start()
    second.on_train_end()


def test_fold_that_cannot_be_locked_is_trained(dataset, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(locks, "lock", refuse)
    trainer = _trainer(dataset(LABELS))
    trainer.on_train_start()
    assert "training.lock cannot be locked ([Errno 13] Permission denied)" in _log_of(trainer)
    trainer.on_train_end()


def test_data_is_not_recreated_while_a_trainer_uses_it(dataset, tmp_path):
    trainer = _trainer(dataset(LABELS))
    trainer.initialize()
    make_again = partial(
        ensure_canvas_data,
        trainer.plans_manager.plans,
        "2d",
        trainer.dataset_json,
        preprocessor=HRMedSegPreprocessor(verbose=False),
        raw=tmp_path / "nnUNet_raw",
        preprocessed=tmp_path / "nnUNet_preprocessed",
        force=True,
        log=lambda line: None,
    )
    with pytest.raises(DataError, match=f"In use by {type(trainer).__name__}__nnUNetPlans__2d fold_0"):
        make_again()
    del trainer
    gc.collect()
    make_again()


def _write_splits(tmp_path, *cases):
    file = tmp_path / "nnUNet_preprocessed" / "Dataset001_Test" / "splits_final.json"
    file.write_text(json.dumps([{"train": list(cases[1:]), "val": [cases[0]]}]))
    return file


def test_case_in_the_splits_but_not_in_the_data_is_reported(dataset, tmp_path):
    description = dataset(LABELS)
    file = _write_splits(tmp_path, "case_0", "case_1", "gone")
    with pytest.raises(DataError, match=r"(?s)Fold 0 cannot be trained.* missing: gone.*restore.*remove.*start over"):
        _trainer(description).on_train_start()
    assert json.loads(file.read_text())[0]["train"] == ["case_1", "gone"]
    trainer = _trainer(description)
    trainer.initialize()
    with pytest.raises(DataError, match="gone"):
        trainer.perform_actual_validation()
    trainer = _trainer(description, fold="all")
    trainer.on_train_start()
    assert len(trainer.dataloader_train.data_loader._data.identifiers) == 5


def test_fewer_cases_than_folds_require_fold_all_or_custom_splits(dataset, tmp_path):
    description = dataset(LABELS)
    raw = tmp_path / "nnUNet_raw" / "Dataset001_Test"
    for folder in ("imagesTr", "labelsTr"):
        for file in (raw / folder).glob("case_[34]*"):
            file.unlink()
    with pytest.raises(DataError, match=r"has 3 cases \(case_0, case_1, case_2\), and nnU-Net needs at least 5"):
        _trainer(description).on_train_start()
    trainer = _trainer(description, fold="all")
    trainer.on_train_start()
    trainer.on_train_end()
    _write_splits(tmp_path, "case_0", "case_1", "case_2")
    trainer = _trainer(description)
    trainer.on_train_start()
    assert trainer.do_split() == (["case_1", "case_2"], ["case_0"])


@pytest.mark.parametrize(
    "fold, message",
    [
        ({"train": ["case_0"], "val": []}, "Fold 0 of .*splits_final.json has no case under val"),
        ({"train": [], "val": ["case_0"]}, "Fold 0 of .*splits_final.json has no case under train"),
        ({"train": ["case_0"]}, "cannot be read as nnU-Net's list of folds .*'val'"),
    ],
)
def test_fold_that_cannot_be_trained_is_reported(dataset, tmp_path, fold, message):
    trainer = _trainer(dataset(LABELS))
    trainer.initialize()
    (tmp_path / "nnUNet_preprocessed" / "Dataset001_Test" / "splits_final.json").write_text(json.dumps([fold]))
    with pytest.raises(DataError, match=message):
        trainer.on_train_start()


def test_cases_that_no_fold_uses_are_reported_once(dataset, tmp_path):
    description = dataset(LABELS)
    _write_splits(tmp_path, *(f"case_{number}" for number in range(5)))
    trainer = _trainer(description)
    trainer.on_train_start()
    assert "in no fold" not in _log_of(trainer)
    trainer.on_train_end()
    _write_splits(tmp_path, "case_0", "case_1", "case_2")
    trainer = _trainer(description)
    trainer.on_train_start()
    trainer.do_split()
    warning = "Warning: case_3, case_4 are in the preprocessed data but in no fold"
    assert _log_of(trainer).count(warning) == 1


def test_continued_training_restores_weights_epoch_and_plans(dataset):
    description = dataset(LABELS)
    trainer = _trainer(description)
    trainer.on_train_start()
    trainer.current_epoch = 4
    file = os.path.join(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(file)

    checkpoint = torch.load(file, weights_only=False)
    checkpoint["init_args"]["plans"]["configurations"]["2d"]["batch_size"] = 7
    torch.save(checkpoint, file)

    again = _trainer(description)
    again.load_checkpoint(file)
    assert again.current_epoch == 5
    assert again.my_init_kwargs["plans"]["configurations"]["2d"]["batch_size"] == 7
    for name, value in trainer.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value)


def test_each_length_has_a_trainer():
    names = set(variants.__all__)
    assert len(names) == len(TRAINERS) * len(EPOCHS)
    for name in names:
        assert getattr(variants, name).__name__ == name


@pytest.mark.parametrize(
    "name", ["nnUNetTrainerHRMedSeg_1epoch", "nnUNetTrainerHERSeg_250epochs", "nnUNetTrainerHRMedSegScratch_10epochs"]
)
def test_variant_differs_only_in_its_length(dataset, name):
    cls = getattr(variants, name)
    trainer = cls(_plans(cls.network_name), "2d", 0, dataset(LABELS), CPU)
    assert trainer.num_epochs == int(name.split("_")[1].removesuffix("s").removesuffix("epoch"))
    assert trainer.my_init_kwargs.keys() == {"plans", "configuration", "fold", "dataset_json", "device"}
