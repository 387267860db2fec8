"""The trainers on a tiny dataset of their own, without nnU-Net's worker processes."""

import errno
import gc
import json
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.nn import functional as F

from nnunet_hrmedseg.architectures import HERSeg, HRMedSeg
from nnunet_hrmedseg.errors import CheckpointError, DataError, HRMedSegError, PlanError, SetupError
from nnunet_hrmedseg.io import locks
from nnunet_hrmedseg.nnunet_versions import build_network
from nnunet_hrmedseg.plans.overrides import hrmedseg_plans
from nnunet_hrmedseg.preprocessing.canvas_dataset import ensure_canvas_data
from nnunet_hrmedseg.registration.names import EPOCHS, TRAINERS
from nnunet_hrmedseg.trainers import base, variants
from nnunet_hrmedseg.trainers.hrmedseg import (
    nnUNetTrainerHERSeg,
    nnUNetTrainerHERSegScratch,
    nnUNetTrainerHRMedSeg,
    nnUNetTrainerHRMedSegScratch,
)
from nnunet_hrmedseg.trainers.initialization import ENVIRONMENT_VARIABLE
from nnunet_hrmedseg.trainers.losses import LARGE_STRIP, SMALL_STRIP
from nnunet_hrmedseg.weights import write_encoder
from nnunet_hrmedseg.weights.student import Normalize, Student, encoder_architecture
from tests.nnunet_releases import since_nnunet
from tests.plans.stock_plans import stock_plans, volume_plans
from tests.trainers.conftest import IGNORE, LABELS, REGIONS, REGIONS_AND_IGNORE

CPU = torch.device("cpu")
CANVAS = 64


def _plans(network="HRMedSeg", **arguments):
    plans = hrmedseg_plans(stock_plans(), num_training_cases=5, network=network)
    configuration = plans["configurations"]["2d"]
    configuration["patch_size"] = [CANVAS, CANVAS]
    configuration["architecture"]["arch_kwargs"].update(depth=4, embed_dim=48, **arguments)
    configuration["encoder_weights"] = "none"
    return {**plans, "continue_training": False}


def _trainer(description, cls=nnUNetTrainerHRMedSeg, fold=0, plans=None):
    trainer = cls(plans or _plans(cls.network_name), "2d", fold, description, CPU)
    trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 3, 1
    return trainer


@pytest.mark.parametrize("cls, network", [(nnUNetTrainerHRMedSeg, HRMedSeg), (nnUNetTrainerHERSeg, HERSeg)])
def test_a_stock_plan_becomes_ours(dataset, cls, network):
    stock = {**stock_plans(), "continue_training": False}
    trainer = cls(stock, "2d", 0, dataset(LABELS), CPU)
    assert trainer.configuration_manager.patch_size == [1024, 1024]
    assert trainer.plans_manager.plans_name == "nnUNetPlans"
    assert trainer.my_init_kwargs["plans"]["configurations"]["2d"]["preprocessor_name"] == "HRMedSegPreprocessor"
    built = build_network(type(trainer), trainer.plans_manager, trainer.configuration_manager, 3, 3, False)
    assert type(built) is network
    assert stock["configurations"]["2d"]["patch_size"] == [448, 512]


@pytest.mark.parametrize("configuration", ["3d_fullres", "3d_cascade_fullres", "3d_lowres"])
def test_3d_and_cascades_are_refused_before_anything_is_written(dataset, tmp_path, configuration):
    with pytest.raises(PlanError, match="use the configuration 2d"):
        nnUNetTrainerHRMedSeg({**volume_plans(), "continue_training": False}, configuration, 0, dataset(LABELS), CPU)
    assert not list((tmp_path / "nnUNet_results").iterdir())


@pytest.mark.parametrize("labels", [LABELS, REGIONS, IGNORE], ids=["labels", "regions", "ignore label"])
@pytest.mark.parametrize("cls", [nnUNetTrainerHRMedSeg, nnUNetTrainerHERSeg])
def test_trains_and_validates(dataset, cls, labels):
    trainer = _trainer(dataset(labels), cls)
    trainer.num_epochs = 1
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    outputs = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(3)]
    trainer.on_train_epoch_end(outputs)
    assert all(np.isfinite(output["loss"]) for output in outputs)
    changed = sum(not torch.equal(before[name], p) for name, p in trainer.network.named_parameters())
    assert changed > 0.9 * len(before)
    trainer.on_validation_epoch_start()
    with torch.no_grad():
        result = trainer.validation_step(next(trainer.dataloader_val))
    assert len(result["tp_hard"]) == 2


@pytest.mark.parametrize("cls", [nnUNetTrainerHRMedSeg, nnUNetTrainerHERSeg])
def test_the_recipe(dataset, cls):
    trainer = cls(_plans(cls.network_name), "2d", 0, dataset(LABELS), CPU)
    trainer.initialize()
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.save_every) == (200, 250, 1)
    assert isinstance(trainer.optimizer, torch.optim.Adam)
    assert {name: trainer.optimizer.defaults[name] for name in ("betas", "weight_decay")} == {
        "betas": (0.9, 0.95),
        "weight_decay": 0,
    }
    schedule = trainer.lr_scheduler
    assert schedule.initial_lrs == [1e-3, 1e-3]
    assert (schedule.num_epochs, schedule.warmup_epochs * 250) == (200, pytest.approx(20))


@pytest.mark.parametrize("cls", [nnUNetTrainerHRMedSeg, nnUNetTrainerHERSeg])
def test_the_loss_is_that_of_the_paper(dataset, cls):
    trainer = _trainer(dataset(LABELS), cls)
    trainer.initialize()
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 16, 16), torch.randint(3, (2, 1, 16, 16))
    probability, truth = logits.softmax(1), F.one_hot(target[:, 0], 3).movedim(-1, 1)
    intersection, sizes = ((x).sum((0, 2, 3))[1:] for x in (probability * truth, probability + truth))
    dice = (2 * intersection / sizes).mean()
    cross_entropy = F.cross_entropy(logits, target[:, 0], reduction="none")
    focal = 0.8 * (1 - torch.exp(-cross_entropy)) ** 2 * cross_entropy
    expected = {
        nnUNetTrainerHRMedSeg: 0.2 * focal.mean() - 0.8 * dice,
        nnUNetTrainerHERSeg: cross_entropy.mean() - dice,
    }
    torch.testing.assert_close(trainer.loss(logits, target), expected[cls], rtol=1e-4, atol=1e-5)


def test_logits_come_to_full_size_in_our_loss_and_nowhere_else(dataset):
    class WithStockLoss(nnUNetTrainerHRMedSeg):
        _build_loss = nnUNetTrainer._build_loss

    description = dataset(LABELS)
    for cls, side in ((nnUNetTrainerHRMedSeg, CANVAS // 4), (WithStockLoss, CANVAS)):
        trainer = _trainer(description, cls)
        trainer.initialize()
        image = torch.randn(2, 3, CANVAS, CANVAS)
        assert trainer.network.train()(image).shape == (2, 3, side, side)
        assert trainer.network.eval()(image).shape == (2, 3, CANVAS, CANVAS)


@since_nnunet("2.7", "pixels outside the image are told apart from background")
@pytest.mark.parametrize(
    "labels",
    [LABELS, REGIONS, IGNORE, REGIONS_AND_IGNORE],
    ids=["labels", "regions", "ignore label", "regions and ignore label"],
)
def test_batches_augmented_beside_the_network(dataset, labels, monkeypatch):
    monkeypatch.setattr(nnUNetTrainerHRMedSeg, "augments_batches", True)
    trainer = _trainer(dataset(labels))
    trainer.num_epochs = 1
    trainer.on_train_start()
    loaded = next(trainer.dataloader_train)
    assert loaded["target"].shape[1] == 1  # nothing was made of the labels yet
    assert loaded["data"].dtype == torch.float16 and loaded["target"].dtype == torch.int8
    assert next(trainer.dataloader_val)["data"].dtype == torch.float32
    ignored = "ignore" in labels
    assert trainer.batch_augmentation.labels == [-1, 0, 1, 2, *[3] * ignored]
    (spatial,) = (step for _, step in trainer.batch_augmentation.steps if isinstance(step, SpatialTransform))
    spatial.p_rotation = 1  # every label goes through the resampling
    as_nnunet = trainer.loss
    targets = []
    trainer.loss = lambda output, target: targets.append(target) or as_nnunet(output, target)
    trainer.on_train_epoch_start()
    for _ in range(3):
        batch = next(trainer.dataloader_train)
        before = batch["data"].clone()
        assert np.isfinite(trainer.train_step(batch)["loss"])
        assert batch["data"].dtype == torch.float32 and batch["target"].dtype in (torch.int16, torch.bool)
        assert not torch.equal(batch["data"], before)
    trainer.progress.close()
    regions = trainer.label_manager.has_regions
    heads = 2 + ignored if regions else 1
    assert all(target.shape[1] == heads and target.min() >= 0 for target in targets)
    seen = [(target[:, -1:] == 1 if regions else target == 3).any() for target in targets]
    # a zoom may leave the ignored margin outside of an image
    assert any(seen) if ignored else regions or not any(seen)


def test_augmentation_stays_with_the_workers_without_a_gpu(dataset):
    trainer = _trainer(dataset(LABELS))
    assert trainer.get_training_transforms((CANVAS, CANVAS), (-3, 3), None, (0, 1), False) is not None
    assert trainer.batch_augmentation is None
    trainer.on_train_start()
    assert next(trainer.dataloader_train)["data"].dtype == torch.float32


def test_augmentation_is_beside_the_network_with_a_gpu_unless_the_trainer_says_otherwise(dataset):
    trainer = _trainer(dataset(LABELS))
    assert not trainer.augments_batches
    trainer.device = torch.device("cuda")
    assert trainer.augments_batches
    trainer.augment_on_gpu = False
    assert not trainer.augments_batches


def test_augmentation_that_is_not_done_on_batches_stays_with_the_workers(dataset, monkeypatch):
    class Unknown(BasicTransform):
        pass

    pipeline = ComposeTransforms([Unknown()])
    monkeypatch.setattr(nnUNetTrainerHRMedSeg, "augments_batches", True)
    monkeypatch.setattr(nnUNetTrainer, "get_training_transforms", lambda *args, **kwargs: pipeline)
    trainer = _trainer(dataset(LABELS))
    assert trainer.get_training_transforms() is pipeline and trainer.batch_augmentation is None
    assert "Augmentation stays with the workers: there is no Unknown for batches." in _log_of(trainer)


def test_learns_a_tiny_data_set(dataset):
    trainer = _trainer(dataset(LABELS), fold="all")
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.warmup_iterations = 1, 60, 5
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    losses = [float(trainer.train_step(next(trainer.dataloader_train))["loss"]) for _ in range(60)]
    trainer.progress.close()
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.1


def test_learning_rate_moves_with_every_iteration(dataset):
    trainer = _trainer(dataset(LABELS))
    trainer.num_epochs, trainer.warmup_iterations = 2, 0
    trainer.on_train_start()
    rates = []
    for epoch in range(2):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        for _ in range(3):
            trainer.train_step(next(trainer.dataloader_train))
            rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.progress.close()
    expected = [1e-3 * (1 - step / 6) ** 0.9 for step in range(6)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("cls", [nnUNetTrainerHRMedSeg, nnUNetTrainerHERSeg])
def test_neck_and_decoder_learn_slower_in_a_long_training(dataset, cls):
    trainer = _trainer(dataset(LABELS), cls)
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.warmup_iterations = 100, 5, 0
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))
    trainer.progress.close()
    rates = {id(parameter): group["lr"] for group in trainer.optimizer.param_groups for parameter in group["params"]}
    full = 1e-3 * (1 - 0.2 / 100) ** 0.9
    for part, rate in (("encoder", full), ("neck", full * 150 / 500), ("decoder", full * 150 / 500)):
        found = {rates.pop(id(parameter)) for parameter in getattr(trainer.network, part).parameters()}
        assert list(found) == pytest.approx([rate])
    assert not rates
    assert trainer.optimizer.defaults["betas"] == (0.9, 0.95)


def test_the_whole_canvas_is_the_patch(dataset):
    trainer = _trainer(dataset(LABELS))
    initial = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[2]
    assert list(initial) == [CANVAS, CANVAS]


@pytest.mark.parametrize("batch_size, slices, drawn", [(2, 1, 1), (1, 1, 2), (1, 40, 50)])
def test_few_validation_images_are_drawn_twice_and_not_fifty_times(dataset, batch_size, slices, drawn):
    """One case is in this fold, which of a volume can be any of its slices."""
    plans = _plans()
    plans["configurations"]["2d"]["batch_size"] = batch_size
    plans["original_median_shape_after_transp"][0] = slices
    trainer = _trainer(dataset(LABELS), plans=plans)
    trainer.num_val_iterations_per_epoch = 50
    trainer.on_train_start()
    assert trainer.num_val_iterations_per_epoch == drawn


def test_validation_counts_the_images_of_all_processes(dataset):
    """With several GPUs each has a part of the batch; two passes over the validation images are shared by all."""
    plans = _plans()
    plans["configurations"]["2d"]["batch_size"] = 5
    trainer = _trainer(dataset(LABELS), plans=plans, fold="all")  # five images are validated
    trainer.num_val_iterations_per_epoch = 50
    trainer.initialize()
    for batch_size in (3, 2):
        trainer.batch_size = batch_size
        trainer.get_tr_and_val_datasets()
        assert trainer.num_val_iterations_per_epoch == 2


def test_a_checkpoint_is_whole_or_not_there(dataset, monkeypatch):
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
def test_a_process_that_saves_nothing_leaves_the_checkpoint_alone(dataset, name, value):
    trainer = _trainer(dataset(LABELS))
    trainer.on_train_start()
    file = Path(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(str(file))
    first = file.read_bytes()
    half = file.with_name("checkpoint_latest.pth.incomplete")
    half.write_bytes(b"half")  # of a training that was killed, or what another process writes just now
    setattr(trainer, name, value)
    trainer.save_checkpoint(str(file))
    assert file.read_bytes() == first and half.read_bytes() == b"half"


def test_a_full_disk_keeps_the_last_checkpoint_and_leaves_no_half_one(dataset, monkeypatch):
    trainer = _trainer(dataset(LABELS))
    trainer.on_train_start()
    file = Path(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(str(file))
    first = file.read_bytes()

    def full(checkpoint, filename):
        Path(filename).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SetupError, match=r"(?s)checkpoint_latest.pth could not be saved .*No space left.*--c"):
        trainer.save_checkpoint(str(file))
    assert file.read_bytes() == first
    assert not list(file.parent.glob("*.incomplete"))


@pytest.mark.parametrize("length", [0, 100, -100], ids=["empty", "head", "without its end"])
def test_a_truncated_checkpoint_is_named(dataset, length):
    description = dataset(LABELS)
    trainer = _trainer(description)
    trainer.on_train_start()
    file = Path(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(str(file))
    trainer.save_checkpoint(str(file.with_name("checkpoint_best.pth")))
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"(?s)checkpoint_latest.pth cannot be loaded.*from checkpoint_best.pth"):
        _trainer(description).load_checkpoint(str(file))


def test_two_trainings_of_one_fold(dataset):
    description = dataset(LABELS)
    first, second, other = _trainer(description), _trainer(description), _trainer(description, fold=1)
    first.on_train_start()
    with pytest.raises(SetupError, match="Another process is training this fold"):
        second.on_train_start()
    other.on_train_start()
    first.on_train_end()
    second.on_train_start()


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_two_trainings_of_one_fold_on_a_file_system_without_locks(dataset, monkeypatch, error):
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


def test_a_fold_that_cannot_be_locked_is_trained(dataset, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(base, "lock", refuse)
    trainer = _trainer(dataset(LABELS))
    trainer.on_train_start()
    assert "training.lock cannot be locked ([Errno 13] Permission denied)" in _log_of(trainer)
    trainer.on_train_end()


def test_data_is_not_made_again_while_a_trainer_uses_it(dataset, tmp_path):
    trainer = _trainer(dataset(LABELS))
    trainer.initialize()
    make_again = partial(
        ensure_canvas_data,
        trainer.plans_manager.plans,
        "2d",
        trainer.dataset_json,
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


def test_a_case_that_is_in_the_splits_and_not_in_the_data_is_named(dataset, tmp_path):
    description = dataset(LABELS)
    file = _write_splits(tmp_path, "case_0", "case_1", "gone")
    with pytest.raises(DataError, match=r"(?s)Fold 0 cannot be trained.* missing: gone.*restore.*remove.*begin"):
        _trainer(description).on_train_start()
    assert json.loads(file.read_text())[0]["train"] == ["case_1", "gone"]
    trainer = _trainer(description)
    trainer.initialize()
    with pytest.raises(DataError, match="gone"):
        trainer.perform_actual_validation()
    trainer = _trainer(description, fold="all")
    trainer.on_train_start()
    assert len(trainer.dataloader_train.data_loader._data.identifiers) == 5


def test_fewer_cases_than_folds_are_trained_with_all_or_with_folds_of_the_user(dataset, tmp_path):
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


def test_continuing_restores_weights_epoch_and_plans(dataset):
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


def test_every_length_is_a_trainer():
    names = set(variants.__all__)
    assert len(names) == len(TRAINERS) * len(EPOCHS)
    for name in names:
        assert getattr(variants, name).__name__ == name


@pytest.mark.parametrize(
    "name", ["nnUNetTrainerHRMedSeg_1epoch", "nnUNetTrainerHERSeg_250epochs", "nnUNetTrainerHRMedSegScratch_10epochs"]
)
def test_a_variant_differs_in_its_length_alone(dataset, name):
    cls = getattr(variants, name)
    trainer = cls(_plans(cls.network_name), "2d", 0, dataset(LABELS), CPU)
    assert trainer.num_epochs == int(name.split("_")[1].removesuffix("s").removesuffix("epoch"))
    assert trainer.my_init_kwargs.keys() == {"plans", "configuration", "fold", "dataset_json", "device"}


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


def _has_the_weights_of(trainer, file):
    state = trainer.network.state_dict()
    return all(torch.equal(state[name], value) for name, value in file.state.items())


def _log_of(trainer):
    with open(trainer.log_file) as file:
        return file.read()


def test_a_fresh_training_starts_from_the_encoder_and_says_so(dataset, encoder):
    trainer = _starting_from(dataset(LABELS), str(encoder.path))
    trainer.on_train_start()
    assert _has_the_weights_of(trainer, encoder)
    assert encoder.sha256 in _log_of(trainer)
    with open(os.path.join(trainer.output_folder_base, "plans.json")) as file:
        saved = json.load(file)["configurations"]["2d"]
    assert saved["encoder_started_from"] == {"file": str(encoder.path), "sha256": encoder.sha256, "name": "tiny"}


def test_a_compiled_network_starts_from_the_encoder_and_trains(dataset, encoder, monkeypatch):
    """nnU-Net compiles on a GPU: here without a compiler behind it."""
    monkeypatch.setattr(nnUNetTrainerHRMedSeg, "_do_i_compile", lambda self: True)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager_decomp_partition"))
    trainer = _starting_from(dataset(LABELS), str(encoder.path))
    trainer.num_iterations_per_epoch = 1
    trainer.on_train_start()
    trainer.loss.logits_in_a_strip = 2 * 3 * CANVAS**2 // 5  # strips, as in large batches of large images
    network = trainer.network._orig_mod
    assert all(torch.equal(network.state_dict()[name], value) for name, value in encoder.state.items())
    trainer.on_train_epoch_start()
    assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])
    trainer.progress.close()
    assert any(not torch.equal(network.state_dict()[name], value) for name, value in encoder.state.items())
    assert "nnUNet_compile=f" in _log_of(trainer)


class _Compilations:
    """A backend of torch.compile that notes what it compiles."""

    def __init__(self):
        self.training = []

    def __call__(self, graph, inputs):
        self.training.append(torch.is_grad_enabled())
        return graph


@pytest.mark.parametrize("cls", [nnUNetTrainerHRMedSeg, nnUNetTrainerHERSeg])
def test_only_the_training_step_is_compiled(dataset, monkeypatch, cls):
    """Validation and prediction would compile the network again, for minutes each."""
    compilations = _Compilations()
    monkeypatch.setattr(cls, "_do_i_compile", lambda self: True)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compilations))
    predicted_by = []
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda self, npz: predicted_by.append(self.network))
    torch._dynamo.reset()
    trainer = _trainer(dataset(LABELS), cls)
    trainer.num_iterations_per_epoch = 1
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    trainer.progress.close()
    assert 2 <= len(compilations.training) <= 3 and all(compilations.training)  # network, and the loss of a strip

    compiled = trainer.network
    trainer.on_validation_epoch_start()
    with torch.no_grad():
        assert np.isfinite(trainer.validation_step(next(trainer.dataloader_val))["loss"])
    trainer.perform_actual_validation()
    assert predicted_by == [compiled._orig_mod] and trainer.network is compiled
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    trainer.progress.close()
    assert len(compilations.training) <= 3


def test_a_training_without_compilation_announces_none(dataset):
    trainer = _trainer(dataset(LABELS))
    trainer.initialize()
    assert "nnUNet_compile" not in _log_of(trainer)


def test_the_log_says_what_canvas_and_memory_come_to(dataset):
    trainer = _trainer(dataset(LABELS))
    trainer.initialize()
    log = _log_of(trainer)
    assert "Images of 432 x 500 pixels (the median) are resized to a canvas of 64 x 64. Objects thinner than 62" in log
    assert "Estimated training memory: " in log and f"{CANVAS} x {CANVAS})" in log


@pytest.mark.parametrize("free, recomputes", [(10**6, True), (10**12, False), (None, False)])
def test_layers_are_recomputed_where_memory_is_short(dataset, monkeypatch, free, recomputes):
    """Plans are made for a GPU's mixed precision: in float32 the same batch may not fit."""
    monkeypatch.setattr("nnunet_hrmedseg.trainers.hrmedseg.free_device_memory", lambda device: free)
    trainer = _trainer(dataset(LABELS))
    trainer.initialize()
    network, in_log = trainer.plain_network, "Layers are recomputed in the backward pass" in _log_of(trainer)
    parts = (network.encoder, network.neck, network.decoder, network.decoder.transformer)
    assert {part.recompute for part in parts} == {recomputes} and in_log is recomputes
    assert trainer.loss.logits_in_a_strip == (SMALL_STRIP if recomputes else LARGE_STRIP)
    assert trainer.configuration_manager.network_arch_init_kwargs["recompute"] is False  # what is saved stays


def test_a_gpu_with_room_is_told_how_to_keep_the_layers(dataset, monkeypatch):
    gpu = SimpleNamespace(total_memory=80e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    trainer = _trainer(dataset(LABELS), plans=_plans(recompute=True))
    trainer.initialize()
    assert "-gpu_memory_target" not in trainer.describe_memory()
    trainer.device = torch.device("cuda")
    words = trainer.describe_memory()
    assert "mixed precision, compiled" in words and "-d 1 -pl nnUNetPlannerHRMedSeg -gpu_memory_target 1," in words
    gpu.total_memory = 0.4e9
    assert "-gpu_memory_target" not in trainer.describe_memory()


def test_the_optimiser_trains_the_weights_that_were_loaded(dataset, encoder):
    trainer = _starting_from(dataset(LABELS), str(encoder.path))
    trainer.num_iterations_per_epoch = 1
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    trainer.progress.close()
    weight = "encoder.patch_embedding.proj.weight"
    change = (trainer.network.state_dict()[weight] - encoder.state[weight]).abs().max()
    assert 0 < change < 0.01


def test_the_learning_rate_of_an_encoder_that_was_loaded(dataset, encoder):
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

    again = _starting_from(description, "none", SlowEncoder)  # where --c begins, plans and files say nothing
    again.load_checkpoint(file)
    assert rates(again) == [3e-4, 1e-3]
    for before, after in zip(trainer.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(trainer.optimizer.state[before]["exp_avg"], again.optimizer.state[after]["exp_avg"])
    from_nothing.save_checkpoint(file)
    again = _starting_from(description, str(encoder.path), SlowEncoder)
    again.load_checkpoint(file)
    assert rates(again) == [1e-3, 1e-3]


@pytest.mark.parametrize("cls", [nnUNetTrainerHRMedSegScratch, nnUNetTrainerHERSegScratch])
def test_from_scratch_whatever_plans_and_environment_say(dataset, encoder, monkeypatch, cls):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(encoder.path))
    trainer = _starting_from(dataset(LABELS), str(encoder.path), cls)
    trainer.on_train_start()
    assert not _has_the_weights_of(trainer, encoder)
    assert trainer.encoder_record == {"file": "none"}


def test_continuing_needs_no_encoder_file_and_keeps_the_record(dataset, encoder):
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


def test_predicting_needs_no_encoder_file(dataset):
    trainer = _starting_from(dataset(LABELS), "/nowhere/encoder.safetensors")
    network = build_network(type(trainer), trainer.plans_manager, trainer.configuration_manager, 3, 3, False)
    assert network.encoder.embed_dim == 48


def test_pretrained_weights_of_the_whole_network_win(dataset, encoder, tmp_path):
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


def test_a_fold_does_not_start_from_another_file_of_the_hub_than_the_folds_before(dataset, encoder, hub):
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


def test_a_missing_encoder_is_said_before_any_preprocessing(dataset, tmp_path):
    trainer = _starting_from(dataset(LABELS), str(tmp_path / "absent.safetensors"))
    with pytest.raises(HRMedSegError, match="There is no encoder file .*absent"):
        trainer.on_train_start()
    assert not list((tmp_path / "nnUNet_preprocessed" / "Dataset001_Test").glob("HRMedSeg_*"))


def test_a_batch_that_does_not_fit_into_the_gpu_says_what_to_change(dataset, monkeypatch):
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


def test_without_a_gpu_nothing_is_preprocessed_for_it(dataset, monkeypatch):
    trainer = _trainer(dataset(LABELS))
    trainer.device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(HRMedSegError, match="without CUDA.*-device cpu"):
        trainer.initialize()
    assert not list(Path(os.environ["nnUNet_preprocessed"]).rglob("HRMedSeg_*"))
