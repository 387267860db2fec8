"""The trainer for volumes on a tiny preprocessed dataset, without nnU-Net's worker processes."""

import json
import os
import re

import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_hrmedseg.architectures import SegMaFormer
from nnunet_hrmedseg.errors import DataError, PlanError
from nnunet_hrmedseg.nnunet_versions import build_network, nnunet_folders
from nnunet_hrmedseg.plans.volumes import segmaformer_plans
from nnunet_hrmedseg.trainers.segmaformer import nnUNetTrainerSegMaFormer
from nnunet_hrmedseg.trainers.variants import nnUNetTrainerSegMaFormer_5epochs
from tests.plans.stock_plans import volume_plans
from tests.trainers.conftest import dataset_json

CPU = torch.device("cpu")
PATCH = [8, 32, 32]

LABELS = {"background": 0, "ball": 1, "core": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}
IGNORE = {**LABELS, "ignore": 3}


def _stock_plans():
    plans = volume_plans()
    plans["configurations"]["3d_fullres"].update(
        patch_size=PATCH, batch_size=2, data_identifier="nnUNetPlans_3d_fullres"
    )
    return {**plans, "continue_training": False}


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Return a function that writes five preprocessed volumes with a ball in each and returns their dataset.json."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")

    def write(labels):
        description = dataset_json(labels, ["a", "b", "c"], ".nii.gz")
        base = tmp_path / "nnUNet_preprocessed" / "Dataset001_Test"
        folder = base / "nnUNetPlans_3d_fullres"
        folder.mkdir(parents=True)
        (base / "dataset.json").write_text(json.dumps(description))
        (base / "dataset_fingerprint.json").write_text("{}")
        manager = PlansManager(volume_plans()).get_label_manager(description)
        classes = manager.foreground_regions if manager.has_regions else manager.foreground_labels
        if manager.has_ignore_label:
            classes = [*classes, [-1, *manager.all_labels]]
        random = np.random.default_rng(0)
        z, y, x = np.mgrid[:10, :36, :40]
        for case in range(5):
            distance = np.sqrt(
                4 * (z - 5) ** 2 + (y - random.integers(14, 22)) ** 2 + (x - random.integers(14, 26)) ** 2
            )
            seg = (distance < 10).astype(np.int16) + (distance < 5)
            if "ignore" in labels:
                seg[:2] = 3
            data = np.stack([seg + 0.2 * random.standard_normal(seg.shape) for _ in range(3)]).astype(np.float32)
            locations = DefaultPreprocessor._sample_foreground_locations(seg[None], classes)
            nnUNetDatasetBlosc2.save_case(data, seg[None], {"class_locations": locations}, str(folder / f"case_{case}"))
        return description

    with nnunet_folders(**{name: tmp_path / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}):
        yield write


def _trainer(description, cls=nnUNetTrainerSegMaFormer, fold=0):
    trainer = cls(_stock_plans(), "3d_fullres", fold, description, CPU)
    trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch, trainer.num_epochs = 3, 1, 1
    return trainer


def test_stock_plans_are_converted_and_keep_patch_and_batch(dataset):
    stock = _stock_plans()
    trainer = nnUNetTrainerSegMaFormer(stock, "3d_fullres", 0, dataset(LABELS), CPU)
    assert trainer.configuration_manager.patch_size == PATCH and trainer.configuration_manager.batch_size == 2
    assert trainer.plans_manager.plans_name == "nnUNetPlans"
    built = build_network(type(trainer), trainer.plans_manager, trainer.configuration_manager, 3, 3, False)
    assert type(built) is SegMaFormer
    assert stock["configurations"]["3d_fullres"]["architecture"]["network_class_name"].endswith("PlainConvUNet")
    assert trainer.my_init_kwargs.keys() == {"plans", "configuration", "fold", "dataset_json", "device"}


@pytest.mark.parametrize(
    "configuration, instead", [("2d", "nnUNetTrainerHRMedSeg"), ("3d_cascade_fullres", "3d_lowres")]
)
def test_unsupported_configurations_are_rejected_before_writing(dataset, tmp_path, configuration, instead):
    description = dataset(LABELS)
    with pytest.raises(PlanError, match=instead):
        nnUNetTrainerSegMaFormer(_stock_plans(), configuration, 0, description, CPU)
    assert not (tmp_path / "nnUNet_results").exists()


@pytest.mark.parametrize("labels", [LABELS, REGIONS, IGNORE], ids=["labels", "regions", "ignore label"])
def test_trains_and_validates(dataset, labels):
    trainer = _trainer(dataset(labels))
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    outputs = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(3)]
    trainer.on_train_epoch_end(outputs)
    assert all(np.isfinite(output["loss"]) for output in outputs)
    assert all(not torch.equal(before[name], p) for name, p in trainer.network.named_parameters())
    trainer.on_validation_epoch_start()
    with torch.no_grad():
        result = trainer.validation_step(next(trainer.dataloader_val))
    assert len(result["tp_hard"]) == 2


def test_optimizer_is_that_of_the_paper(dataset):
    trainer = _trainer(dataset(LABELS))
    trainer.initialize()
    decayed, spared = trainer.optimizer.param_groups
    assert type(trainer.optimizer) is torch.optim.AdamW
    assert decayed["betas"] == (0.9, 0.98) and decayed["initial_lr"] == 3e-4
    assert decayed["weight_decay"] == 1e-2 and spared["weight_decay"] == 0
    assert len(spared["params"]) == 2 * 5  # A and D of five Mamba layers
    assert sum(p.numel() for group in (decayed, spared) for p in group["params"]) == sum(
        p.numel() for p in trainer.network.parameters()
    )
    assert nnUNetTrainerSegMaFormer.recipe_epochs == 1000 and not trainer.enable_deep_supervision


def test_log_contains_the_estimated_memory(dataset):
    trainer = _trainer(dataset(LABELS))
    trainer.on_train_start()
    with open(trainer.log_file) as file:
        log = file.read()
    assert re.search(r"Estimated training memory: 0\.\d+ GB \(float32, batch size 2, 8 x 32 x 32\)", log)
    assert "Mamba runs in plain torch" in log


def test_continued_training_restores_weights_epoch_and_plans(dataset):
    description = dataset(LABELS)
    trainer = _trainer(description)
    trainer.on_train_start()
    trainer.current_epoch = 4
    file = os.path.join(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(file)
    again = _trainer(description)
    again.load_checkpoint(file)
    assert again.current_epoch == 5
    for name, value in trainer.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value)
    assert again.my_init_kwargs["plans"] == segmaformer_plans(
        again.my_init_kwargs["plans"], "3d_fullres", num_classes=3
    )


def test_missing_preprocessed_data_is_reported(dataset, tmp_path):
    trainer = _trainer(dataset(LABELS))
    folder = tmp_path / "nnUNet_preprocessed" / "Dataset001_Test" / "nnUNetPlans_3d_fullres"
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(DataError, match="nnUNetv2_preprocess -d 1 -plans_name nnUNetPlans -c 3d_fullres"):
        trainer.on_train_start()


def test_variant_differs_only_in_its_length(dataset):
    trainer = nnUNetTrainerSegMaFormer_5epochs(_stock_plans(), "3d_fullres", 0, dataset(LABELS), CPU)
    assert trainer.num_epochs == 5
    trainer.initialize()
    assert trainer.lr_scheduler.warmup_epochs == pytest.approx(0.1)
