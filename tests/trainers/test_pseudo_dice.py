"""Loss and counts of validation compared with nnU-Net's validation_step, with memory independent of the classes."""

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from benchmarks.training_memory import LiveBytes
from nnunet_hrmedseg.trainers import losses, pseudo_dice
from nnunet_hrmedseg.trainers.hrmedseg import nnUNetTrainerHERSeg, nnUNetTrainerHRMedSeg
from nnunet_hrmedseg.trainers.losses import dice_and_focal
from nnunet_hrmedseg.trainers.pseudo_dice import hard_counts, hard_counts_in_slabs
from tests.trainers.conftest import IGNORE, LABELS, REGIONS, REGIONS_AND_IGNORE
from tests.trainers.tiny_trainers import CANVAS, _plans, _trainer

EVERY_KIND = pytest.mark.parametrize(
    "labels", [LABELS, REGIONS, IGNORE, REGIONS_AND_IGNORE], ids=["labels", "regions", "ignore", "regions and ignore"]
)


def _batch(labels, images=3, size=(CANVAS, CANVAS)):
    """Return random images and targets as nnU-Net's transforms return them, with a margin of ignored pixels."""
    torch.manual_seed(0)
    regions = any(isinstance(label, list) for label in labels.values())
    target = torch.randint(0, 2 if regions else 3, (images, 2 if regions else 1, *size), dtype=torch.int16)
    if "ignore" in labels:
        ignored = torch.zeros(images, 1, *size, dtype=torch.int16)
        ignored[..., : size[-1] // 4] = 1
        target = torch.cat([target, ignored], 1) if regions else torch.where(ignored == 1, 3, target)
    return {"data": torch.randn(images, 3, *size), "target": target}


def _steps(trainer, labels):
    """Return the results of our step and of nnU-Net's, for a network that predicts every class somewhere."""
    trainer.network.eval()
    with torch.no_grad():
        trainer.network.decoder.seg_layers.queries.mul_(8)
        mine = trainer.validation_step(_batch(labels))
        theirs = nnUNetTrainer.validation_step(trainer, _batch(labels))
    return mine, theirs


def _assert_same(mine, theirs):
    assert mine.keys() == theirs.keys()
    assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    for name in ("tp_hard", "fp_hard", "fn_hard"):
        assert (mine[name] == theirs[name]).all() and theirs[name].shape == (2,), name
    assert (theirs["tp_hard"] + theirs["fp_hard"]).max() > 0 and theirs["fn_hard"].max() > 0


@EVERY_KIND
@pytest.mark.parametrize("cls", [nnUNetTrainerHRMedSeg, nnUNetTrainerHERSeg])
def test_validation_step_equals_that_of_nnunet(dataset, monkeypatch, cls, labels):
    monkeypatch.setattr(losses, "VALIDATION_STRIP", 2 * CANVAS * 24)  # two or three strips per image
    trainer = _trainer(dataset(labels), cls)
    trainer.initialize()
    trainer.plain_network.cpu_bfloat16 = False
    _assert_same(*_steps(trainer, labels))


@EVERY_KIND
def test_stock_loss_equals_that_of_nnunet(dataset, monkeypatch, labels):
    class WithStockLoss(nnUNetTrainerHRMedSeg):
        _build_loss = nnUNetTrainer._build_loss

    monkeypatch.setattr(pseudo_dice, "LOGITS_IN_A_SLAB", 2 * CANVAS * 24)
    trainer = _trainer(dataset(labels), WithStockLoss)
    trainer.initialize()
    trainer.plain_network.cpu_bfloat16 = False
    _assert_same(*_steps(trainer, labels))


def test_dice_per_image(dataset):
    plans = _plans()
    plans["configurations"]["2d"]["batch_dice"] = False
    trainer = _trainer(dataset(LABELS), plans=plans)
    trainer.initialize()
    trainer.plain_network.cpu_bfloat16 = False
    _assert_same(*_steps(trainer, LABELS))


def test_volumes_are_counted_in_slabs(monkeypatch):
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 5, 6, 7), torch.randint(0, 4, (2, 1, 5, 6, 7))
    whole = hard_counts(logits, target, False, 3)
    monkeypatch.setattr(pseudo_dice, "LOGITS_IN_A_SLAB", 2 * 3 * 6 * 7)
    assert len(list(pseudo_dice.slabs(logits, target))) == 2 * 3
    assert torch.equal(hard_counts_in_slabs(logits, target, False, 3), whole)
    predicted = logits.argmax(1, keepdim=True)
    for k in range(3):
        valid = target != 3
        tp = ((predicted == k) & (target == k)).sum()
        assert whole[0, k] == tp and whole[1, k] == ((predicted == k) & valid).sum() - tp
        assert whole[2, k] == (target == k).sum() - tp


@pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])
def test_memory_of_the_counts_is_independent_of_classes_and_images(monkeypatch, regions):
    monkeypatch.setattr(losses, "VALIDATION_STRIP", 2**14)
    peaks = []
    for images, classes in ((1, 2), (3, 2), (1, 16), (3, 16)):
        logits = torch.zeros(images, classes, 32, 32)
        target = torch.zeros(images, classes if regions else 1, 128, 128, dtype=torch.int16)
        with LiveBytes() as counter:
            dice_and_focal(regions=regions).with_counts(logits, target)
        peaks.append(counter.peak - logits.nbytes - target.nbytes)
    assert peaks[0] > 2**14 * 4  # at least one strip in float32; less would be a counting error
    assert max(peaks) < 1.6 * peaks[0]  # two of nnU-Net's maps of one image and 16 classes would be twice as much
