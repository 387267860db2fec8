"""nnUNetTrainerHRMedSegPaper: the settings of the paper, and those of the published code where the paper gives none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform

from nnunet_hrmedseg.evaluation.comparison.budget import with_budget
from nnunet_hrmedseg.trainers.hrmedseg import nnUNetTrainerHRMedSeg
from nnunet_hrmedseg.trainers.paper import nnUNetTrainerHRMedSegPaper
from tests.plans.stock_plans import stock_plans
from tests.trainers.conftest import LABELS, REGIONS_AND_IGNORE
from tests.trainers.tiny_trainers import CPU, _plans


def _paper(description, plans=None, cls=nnUNetTrainerHRMedSegPaper):
    return cls(plans or _plans(), "2d", 0, description, CPU)


def test_optimizer_is_that_of_the_paper(dataset):
    trainer = _paper(dataset(LABELS))
    trainer.initialize()
    (group,) = trainer.optimizer.param_groups
    assert type(trainer.optimizer) is torch.optim.Adam
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-4, (0.9, 0.999), 0)
    assert len(group["params"]) == len(list(trainer.network.parameters()))
    assert trainer.num_epochs == 200
    rates = []
    for epoch in (0, 0.5, 1, 1.97, 2, 199):
        trainer.lr_scheduler.step(epoch)
        rates.append(group["lr"])
    assert rates == pytest.approx([1e-4, 1e-4, 0.98e-4, 0.98e-4, 0.98**2 * 1e-4, 0.98**199 * 1e-4])


def test_batch_size_is_16_unless_set_in_hrmedseg_plans(dataset):
    description = dataset(LABELS)
    stock = {**stock_plans(), "continue_training": False}
    assert _paper(description, stock).configuration_manager.batch_size == 16
    assert nnUNetTrainerHRMedSeg(stock, "2d", 0, description, CPU).configuration_manager.batch_size == 2
    edited = _plans()
    edited["configurations"]["2d"]["batch_size"] = 3
    assert _paper(description, edited).configuration_manager.batch_size == 3


@pytest.mark.parametrize("batch_size, slices, iterations", [(2, 1, 2), (3, 1, 1), (8, 1, 1), (2, 10, 20)])
def test_epoch_is_one_pass_without_the_incomplete_batch(dataset, batch_size, slices, iterations):
    """The training set has four cases."""
    plans = _plans()
    plans["configurations"]["2d"]["batch_size"] = batch_size
    plans["original_median_shape_after_transp"][0] = slices
    trainer = _paper(dataset(LABELS), plans)
    trainer.on_train_start()
    assert trainer.num_iterations_per_epoch == iterations


def test_custom_number_of_iterations_is_kept(dataset):
    class Longer(nnUNetTrainerHRMedSegPaper):
        def __init__(self, plans, configuration, fold, dataset_json, device=CPU):
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.num_iterations_per_epoch = 7

    trainer = _paper(dataset(LABELS), cls=Longer)
    trainer.on_train_start()
    assert trainer.num_iterations_per_epoch == 7


def test_budget_in_minutes_keeps_the_short_first_epoch(dataset):
    trainer = _paper(dataset(LABELS), cls=with_budget(nnUNetTrainerHRMedSegPaper, minutes=1))
    trainer.on_train_start()
    assert trainer.num_iterations_per_epoch == 2


def test_one_image_in_ten_is_flipped_without_other_augmentation(dataset):
    trainer = _paper(dataset(LABELS))
    trainer.initialize()
    rotation, dummy_2d, size, mirror_axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert trainer.inference_allowed_mirroring_axes is None
    pipeline = trainer.get_training_transforms(size, rotation, None, mirror_axes, dummy_2d)
    image, labels = torch.arange(12.0).view(1, 3, 4), torch.arange(12).view(1, 3, 4)
    torch.manual_seed(0)
    np.random.seed(0)
    flipped = 0
    for _ in range(1000):
        result = pipeline(image=image.clone(), segmentation=labels.clone())
        changed = not torch.equal(result["image"], image)
        if changed:
            assert torch.equal(result["image"], image.flip(2)) and torch.equal(result["segmentation"], labels.flip(2))
        else:
            assert torch.equal(result["segmentation"], labels)
        flipped += changed
    assert 70 <= flipped <= 130


def test_regions_and_outside_pixels_are_treated_as_in_validation(dataset, monkeypatch):
    trainer = _paper(dataset(REGIONS_AND_IGNORE))
    monkeypatch.setattr(MirrorTransform, "get_parameters", lambda self, **data: {"axes": []})
    pipeline = trainer.get_training_transforms(None, regions=[(1, 2), 2], ignore_label=3)
    target = pipeline(image=torch.zeros(1, 1, 4), segmentation=torch.tensor([[[-1, 1, 2, 3]]]))["segmentation"]
    assert target[:, 0].int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_trains(dataset):
    trainer = _paper(dataset(LABELS))
    trainer.num_epochs = 1
    trainer.run_training()
    final = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
    assert final["trainer_name"] == "nnUNetTrainerHRMedSegPaper" and final["inference_allowed_mirroring_axes"] is None
    assert all(torch.isfinite(value).all() for value in final["network_weights"].values())
