"""Trainings that start from an encoder file, from pretrained weights of a network, or from random weights."""

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_hrmedseg.errors import CheckpointError, SetupError
from nnunet_hrmedseg.nnunet_versions import build_network
from nnunet_hrmedseg.trainers.hrmedseg import (
    nnUNetTrainerHERSegScratch,
    nnUNetTrainerHRMedSeg,
    nnUNetTrainerHRMedSegScratch,
)
from nnunet_hrmedseg.trainers.initialization import ENVIRONMENT_VARIABLE
from nnunet_hrmedseg.weights import write_encoder
from nnunet_hrmedseg.weights.student import Normalize, Student, encoder_architecture
from tests.trainers.conftest import LABELS
from tests.trainers.tiny_trainers import CANVAS, CPU, _log_of, _plans, _trainer

# ---- the encoder to start from ----


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(5)
    architecture = encoder_architecture(embed_dim=48, depth=4)
    card = {"architecture": architecture, "normalization": Normalize("zscore").card(), "name": "tiny"}
    return write_encoder(tmp_path / "tiny.safetensors", Student(architecture).state_dict(), card)


def _starting_from(description, choice, cls=nnUNetTrainerHRMedSeg):
    plans = _plans(cls.network_name)
    plans["configurations"]["2d"]["encoder_weights"] = choice
    return cls(plans, "2d", 0, description, CPU)


def _has_weights_of(trainer, file):
    state = trainer.network.state_dict()
    return all(torch.equal(state[name], value) for name, value in file.state.items())


def test_new_training_starts_from_the_encoder_and_records_it(dataset, encoder):
    trainer = _starting_from(dataset(LABELS), str(encoder.path))
    trainer.on_train_start()
    assert _has_weights_of(trainer, encoder)
    assert encoder.sha256 in _log_of(trainer)
    with open(os.path.join(trainer.output_folder_base, "plans.json")) as file:
        saved = json.load(file)["configurations"]["2d"]
    assert saved["encoder_started_from"] == {"file": str(encoder.path), "sha256": encoder.sha256, "name": "tiny"}


@pytest.mark.slow
def test_compiled_network_starts_from_the_encoder_and_trains(dataset, encoder, monkeypatch):
    """nnU-Net compiles on a GPU; this test traces without a compiler."""
    monkeypatch.setattr(nnUNetTrainerHRMedSeg, "_do_i_compile", lambda self: True)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager_decomp_partition"))
    trainer = _starting_from(dataset(LABELS), str(encoder.path))
    trainer.num_iterations_per_epoch = 1
    trainer.on_train_start()
    trainer.loss.logits_in_a_strip = 2 * 3 * CANVAS**2 // 5  # strips, as for large batches of large images
    network = trainer.network._orig_mod
    assert all(torch.equal(network.state_dict()[name], value) for name, value in encoder.state.items())
    trainer.on_train_epoch_start()
    assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])
    trainer.progress.close()
    assert any(not torch.equal(network.state_dict()[name], value) for name, value in encoder.state.items())
    assert "nnUNet_compile=f" in _log_of(trainer)


def test_optimizer_trains_the_loaded_weights(dataset, encoder):
    trainer = _starting_from(dataset(LABELS), str(encoder.path))
    trainer.num_iterations_per_epoch = 1
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    trainer.progress.close()
    weight = "encoder.patch_embedding.proj.weight"
    change = (trainer.network.state_dict()[weight] - encoder.state[weight]).abs().max()
    assert 0 < change < 0.01


def test_loaded_encoder_has_its_own_learning_rate(dataset, encoder):
    class SlowEncoder(nnUNetTrainerHRMedSeg):
        encoder_lr = 3e-4

    def rates(trainer):
        return trainer.lr_scheduler.initial_lrs

    description = dataset(LABELS)
    from_nothing = _starting_from(description, "none", SlowEncoder)
    from_nothing.initialize()
    assert rates(from_nothing) == [1e-3, 1e-3]
    trainer = _starting_from(description, str(encoder.path), SlowEncoder)
    trainer.on_train_start()
    assert rates(trainer) == [3e-4, 1e-3]
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    trainer.progress.close()
    file = os.path.join(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(file)

    again = _starting_from(description, "none", SlowEncoder)  # as with --c: the checkpoint decides, not plans or files
    again.load_checkpoint(file)
    assert rates(again) == [3e-4, 1e-3]
    for before, after in zip(trainer.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(trainer.optimizer.state[before]["exp_avg"], again.optimizer.state[after]["exp_avg"])
    again.network = torch.compile(again.network)  # a wrapper, as on several GPUs, changes the names of parameters
    assert [len(group["params"]) for group in again.configure_optimizers()[0].param_groups] == [
        len(group["params"]) for group in trainer.optimizer.param_groups
    ]
    from_nothing.save_checkpoint(file)
    again = _starting_from(description, str(encoder.path), SlowEncoder)
    again.load_checkpoint(file)
    assert rates(again) == [1e-3, 1e-3]


@pytest.mark.parametrize("cls", [nnUNetTrainerHRMedSegScratch, nnUNetTrainerHERSegScratch])
def test_scratch_trainers_ignore_plans_and_environment(dataset, encoder, monkeypatch, cls):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(encoder.path))
    trainer = _starting_from(dataset(LABELS), str(encoder.path), cls)
    trainer.on_train_start()
    assert not _has_weights_of(trainer, encoder)
    assert trainer.encoder_record == {"file": "none"}


def test_continued_training_needs_no_encoder_file_and_keeps_the_record(dataset, encoder):
    description = dataset(LABELS)
    trainer = _starting_from(description, str(encoder.path))
    trainer.on_train_start()
    with torch.no_grad():
        trainer.network.encoder.patch_embedding.proj.weight += 1
    file = os.path.join(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(file)
    encoder.path.unlink()
    trainer.fold_lock.release()  # as when its process ends

    again = _starting_from(description, str(encoder.path))
    again.load_checkpoint(file)
    again.on_train_start()
    weight = "encoder.patch_embedding.proj.weight"
    assert torch.equal(again.network.state_dict()[weight], trainer.network.state_dict()[weight])
    assert again.encoder_record["sha256"] == encoder.sha256
    with open(os.path.join(again.output_folder_base, "plans.json")) as saved:
        assert encoder.sha256 in saved.read()


def test_prediction_needs_no_encoder_file(dataset):
    trainer = _starting_from(dataset(LABELS), "/nowhere/encoder.safetensors")
    network = build_network(type(trainer), trainer.plans_manager, trainer.configuration_manager, 3, 3, False)
    assert network.encoder.embed_dim == 48


def test_pretrained_weights_take_precedence_over_the_encoder(dataset, encoder, tmp_path):
    from nnunetv2.run.run_training import maybe_load_checkpoint

    description = dataset(LABELS)
    other = _starting_from(description, "none")
    other.on_train_start()
    file = os.path.join(other.output_folder, "checkpoint_latest.pth")
    other.save_checkpoint(file)
    trainer = _starting_from(description, str(encoder.path))
    maybe_load_checkpoint(trainer, False, False, file)
    weight = "encoder.patch_embedding.proj.weight"
    assert torch.equal(trainer.network.state_dict()[weight], other.network.state_dict()[weight])


def test_fold_does_not_start_from_a_changed_file_on_the_hub(dataset, encoder, hub):
    def upload():
        files = {f"e{suffix}": encoder.path.with_suffix(suffix).read_bytes() for suffix in (".safetensors", ".json")}
        return hub.commit("a/b", files)

    name, description, first = "hf://a/b/e.safetensors", dataset(LABELS), upload()
    trainer = _starting_from(description, name)
    trainer.on_train_start()
    recorded = {"file": name, "commit": first, "sha256": encoder.sha256, "name": "tiny"}
    with open(os.path.join(trainer.output_folder_base, "plans.json")) as saved:
        assert json.load(saved)["configurations"]["2d"]["encoder_started_from"] == recorded
    assert f"hf://a/b@{first}/e.safetensors" in _log_of(trainer)
    write_encoder(encoder.path, {n: v + 1 for n, v in encoder.state.items()}, encoder.card)
    second = upload()
    with pytest.raises(CheckpointError, match=f"has changed since it was recorded.*@{first}/.*@{second}/"):
        _starting_from(description, name).initialize()
    _starting_from(description, f"hf://a/b@{first}/e.safetensors").initialize()


def test_missing_encoder_is_reported_before_preprocessing(dataset, tmp_path):
    trainer = _starting_from(dataset(LABELS), str(tmp_path / "absent.safetensors"))
    with pytest.raises(CheckpointError, match="There is no encoder file .*absent"):
        trainer.on_train_start()
    assert not list((tmp_path / "nnUNet_preprocessed" / "Dataset001_Test").glob("HRMedSeg_*"))


def test_out_of_memory_error_contains_advice(dataset, monkeypatch):
    trainer = _trainer(dataset(LABELS))
    trainer.on_train_start()
    trainer.on_train_epoch_start()

    def describe_out_of_memory(self, batch):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    monkeypatch.setattr(nnUNetTrainer, "train_step", describe_out_of_memory)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 4 * 10**9))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 4 * 10**9)
    with pytest.raises(SetupError, match="2 images of 64 x 64 .* 4.0 GB.*nnUNetPlannerHRMedSeg"):
        trainer.train_step(next(trainer.dataloader_train))
    trainer.progress.close()


def test_missing_gpu_is_reported_before_preprocessing(dataset, monkeypatch):
    trainer = _trainer(dataset(LABELS))
    trainer.device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(SetupError, match="without CUDA.*-device cpu"):
        trainer.initialize()
    assert not list(Path(os.environ["nnUNet_preprocessed"]).rglob("HRMedSeg_*"))
