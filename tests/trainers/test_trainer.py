"""The trainers on a tiny dataset: plans, recipe, loss, augmentation, compilation, memory."""

from functools import partial
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
from nnunet_hrmedseg.errors import PlanError
from nnunet_hrmedseg.nnunet_versions import build_network
from nnunet_hrmedseg.trainers.hrmedseg import (
    nnUNetTrainerHERSeg,
    nnUNetTrainerHRMedSeg,
)
from nnunet_hrmedseg.trainers.losses import LARGE_STRIP, SMALL_STRIP
from tests.nnunet_releases import since_nnunet
from tests.plans.stock_plans import stock_plans, volume_plans
from tests.trainers.conftest import IGNORE, LABELS, REGIONS, REGIONS_AND_IGNORE
from tests.trainers.tiny_trainers import CANVAS, CPU, _log_of, _plans, _trainer


@pytest.mark.parametrize("cls, network", [(nnUNetTrainerHRMedSeg, HRMedSeg), (nnUNetTrainerHERSeg, HERSeg)])
def test_stock_plans_are_converted(dataset, cls, network):
    stock = {**stock_plans(), "continue_training": False}
    trainer = cls(stock, "2d", 0, dataset(LABELS), CPU)
    assert trainer.configuration_manager.patch_size == [1024, 1024]
    assert trainer.plans_manager.plans_name == "nnUNetPlans"
    assert trainer.my_init_kwargs["plans"]["configurations"]["2d"]["preprocessor_name"] == "HRMedSegPreprocessor"
    built = build_network(type(trainer), trainer.plans_manager, trainer.configuration_manager, 3, 3, False)
    assert type(built) is network
    assert stock["configurations"]["2d"]["patch_size"] == [448, 512]


@pytest.mark.parametrize("configuration", ["3d_fullres", "3d_cascade_fullres", "3d_lowres"])
def test_3d_and_cascades_are_rejected_before_writing(dataset, tmp_path, configuration):
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
def test_recipe(dataset, cls):
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
def test_loss_is_that_of_the_paper(dataset, cls):
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


def test_logits_are_upsampled_only_in_our_loss(dataset):
    class WithStockLoss(nnUNetTrainerHRMedSeg):
        _build_loss = nnUNetTrainer._build_loss

    description = dataset(LABELS)
    for cls, side in ((nnUNetTrainerHRMedSeg, CANVAS // 4), (WithStockLoss, CANVAS)):
        trainer = _trainer(description, cls)
        trainer.initialize()
        image = torch.randn(2, 3, CANVAS, CANVAS)
        assert trainer.network.train()(image).shape == (2, 3, side, side)
        assert trainer.network.eval()(image).shape == (2, 3, CANVAS, CANVAS)


@pytest.mark.slow
@since_nnunet("2.7", "pixels outside the image are distinguished from background")
@pytest.mark.parametrize(
    "labels",
    [LABELS, REGIONS, IGNORE, REGIONS_AND_IGNORE],
    ids=["labels", "regions", "ignore label", "regions and ignore label"],
)
def test_batches_are_augmented_on_the_device(dataset, labels, monkeypatch):
    monkeypatch.setattr(nnUNetTrainerHRMedSeg, "augments_batches", True)
    trainer = _trainer(dataset(labels))
    trainer.num_epochs = 1
    trainer.on_train_start()
    loaded = next(trainer.dataloader_train)
    assert loaded["target"].shape[1] == 1  # labels are not converted yet
    assert loaded["data"].dtype == torch.float16 and loaded["target"].dtype == torch.int8
    assert next(trainer.dataloader_val)["data"].dtype == torch.float32
    ignored = "ignore" in labels
    assert trainer.batch_augmentation.labels == [-1, 0, 1, 2, *[3] * ignored]
    (spatial,) = (step for _, step in trainer.batch_augmentation.steps if isinstance(step, SpatialTransform))
    spatial.p_rotation = 1  # each label is resampled
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
    # a zoom may move the ignored margin outside of an image
    assert any(seen) if ignored else regions or not any(seen)


def test_workers_augment_without_a_gpu(dataset):
    trainer = _trainer(dataset(LABELS))
    assert trainer.get_training_transforms((CANVAS, CANVAS), (-3, 3), None, (0, 1), False) is not None
    assert trainer.batch_augmentation is None
    trainer.on_train_start()
    assert next(trainer.dataloader_train)["data"].dtype == torch.float32


def test_augmentation_runs_on_a_gpu_unless_disabled_by_the_trainer(dataset):
    trainer = _trainer(dataset(LABELS))
    assert not trainer.augments_batches
    trainer.device = torch.device("cuda")
    assert trainer.augments_batches
    trainer.augment_on_gpu = False
    assert not trainer.augments_batches


def test_workers_run_augmentation_that_is_unsupported_on_batches(dataset, monkeypatch):
    class Unknown(BasicTransform):
        pass

    pipeline = ComposeTransforms([Unknown()])
    monkeypatch.setattr(nnUNetTrainerHRMedSeg, "augments_batches", True)
    monkeypatch.setattr(nnUNetTrainer, "get_training_transforms", lambda *args, **kwargs: pipeline)
    trainer = _trainer(dataset(LABELS))
    assert trainer.get_training_transforms() is pipeline and trainer.batch_augmentation is None
    assert "Augmentation is done by the workers: there is no Unknown for batches." in _log_of(trainer)


@pytest.mark.slow
def test_loss_decreases_on_a_tiny_dataset(dataset):
    trainer = _trainer(dataset(LABELS), fold="all")
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.warmup_iterations = 1, 60, 5
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    losses = [float(trainer.train_step(next(trainer.dataloader_train))["loss"]) for _ in range(60)]
    trainer.progress.close()
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.1


def test_learning_rate_changes_at_every_iteration(dataset):
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
def test_neck_and_decoder_have_lower_rates_in_a_long_training(dataset, cls):
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


def test_patch_is_the_whole_canvas(dataset):
    trainer = _trainer(dataset(LABELS))
    initial = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[2]
    assert list(initial) == [CANVAS, CANVAS]


@pytest.mark.parametrize("batch_size, slices, drawn", [(2, 1, 1), (1, 1, 2), (1, 40, 50)])
def test_number_of_validation_batches_is_limited_for_few_images(dataset, batch_size, slices, drawn):
    """This fold has one validation case; for a volume, each of its slices can be drawn."""
    plans = _plans()
    plans["configurations"]["2d"]["batch_size"] = batch_size
    plans["original_median_shape_after_transp"][0] = slices
    trainer = _trainer(dataset(LABELS), plans=plans)
    trainer.num_val_iterations_per_epoch = 50
    trainer.on_train_start()
    assert trainer.num_val_iterations_per_epoch == drawn


def test_validation_counts_the_images_of_all_processes(dataset):
    """With several GPUs, each has a part of the batch; two passes over the validation images are shared among them."""
    plans = _plans()
    plans["configurations"]["2d"]["batch_size"] = 5
    trainer = _trainer(dataset(LABELS), plans=plans, fold="all")  # five validation images
    trainer.num_val_iterations_per_epoch = 50
    trainer.initialize()
    for batch_size in (3, 2):
        trainer.batch_size = batch_size
        trainer.get_tr_and_val_datasets()
        assert trainer.num_val_iterations_per_epoch == 2


class _Compilations:
    """A backend of torch.compile that records its compilations."""

    def __init__(self):
        self.training = []

    def __call__(self, graph, inputs):
        self.training.append(torch.is_grad_enabled())
        return graph


@pytest.mark.slow
@pytest.mark.parametrize("cls", [nnUNetTrainerHRMedSeg, nnUNetTrainerHERSeg])
def test_only_the_training_step_is_compiled(dataset, monkeypatch, cls):
    """Otherwise validation and prediction would compile the network again, which takes minutes each."""
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
    batch = next(trainer.dataloader_train)
    trainer.train_step(batch)
    trainer.progress.close()
    # in another format, the compiled network would keep a copy of the batch
    assert batch["data"].is_contiguous(memory_format=torch.channels_last)
    assert 2 <= len(compilations.training) <= 3 and all(compilations.training)  # network, and loss of a strip

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


def test_log_without_compilation_does_not_mention_it(dataset):
    trainer = _trainer(dataset(LABELS))
    trainer.initialize()
    assert "nnUNet_compile" not in _log_of(trainer)


def test_log_describes_canvas_and_memory(dataset):
    trainer = _trainer(dataset(LABELS))
    trainer.initialize()
    log = _log_of(trainer)
    assert "Images of 432 x 500 pixels (the median) are resized to a canvas of 64 x 64. Objects thinner than 62" in log
    assert "Estimated training memory: " in log and f"{CANVAS} x {CANVAS})" in log


@pytest.mark.parametrize("free, recomputes", [(10**6, True), (10**12, False), (None, False)])
def test_layers_are_recomputed_if_memory_is_short(dataset, monkeypatch, free, recomputes):
    """Plans are made for mixed precision on a GPU: in float32, the same batch may not fit."""
    monkeypatch.setattr("nnunet_hrmedseg.trainers.hrmedseg.free_device_memory", lambda device: free)
    trainer = _trainer(dataset(LABELS))
    trainer.initialize()
    network, in_log = trainer.plain_network, "Layers are recomputed in the backward pass" in _log_of(trainer)
    parts = (network.encoder, network.neck, network.decoder, network.decoder.transformer)
    assert {part.recompute for part in parts} == {recomputes} and in_log is recomputes
    assert trainer.loss.logits_in_a_strip == (SMALL_STRIP if recomputes else LARGE_STRIP)
    assert trainer.configuration_manager.network_arch_init_kwargs["recompute"] is False  # as in the plans


def test_advice_for_gpus_with_enough_memory(dataset, monkeypatch):
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
