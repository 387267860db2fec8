"""The loader for GPUs compared with nnU-Net's: the same images and labels in half as many bytes."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module

from nnunet_hrmedseg.trainers import compact_loading
from nnunet_hrmedseg.trainers.compact_loading import CompactDataLoader, image_dtype, loads_with, target_dtype

SIDE = 32


def manager(labels=(1, 2), ignore=None):
    return SimpleNamespace(all_labels=list(labels), has_ignore_label=ignore is not None, ignore_label=ignore)


@pytest.fixture
def cases(tmp_path):
    """Return a function that writes cases with the given number of slices and returns their dataset."""

    def write(slices=1):
        random = np.random.default_rng(0)
        for number in range(5):
            image = random.normal(size=(3, slices, SIDE, SIDE)).astype(np.float32)
            labels = random.integers(-1, 3, (1, slices, SIDE, SIDE)).astype(np.int16)
            places = {label: np.argwhere(labels == label)[:50] for label in (1, 2)}
            chunks = {"chunks": (1, 1, SIDE, SIDE), "blocks": (1, 1, SIDE, SIDE)}
            file = str(tmp_path / f"case_{number}")
            nnUNetDatasetBlosc2.save_case(image, labels, {"class_locations": places}, file, **chunks)
        return nnUNetDatasetBlosc2(str(tmp_path))

    return write


def loaded(loader, seed):
    np.random.seed(seed)
    return loader.generate_train_batch()


@pytest.mark.parametrize("slices", [1, 4], ids=["images", "slices of volumes"])
def test_loaded_data_equals_that_of_nnunet(cases, slices):
    arguments = (cases(slices), 4, (SIDE, SIDE), (SIDE, SIDE), manager(), 0.33)
    theirs, ours = nnUNetDataLoader(*arguments), CompactDataLoader(*arguments)
    for seed in range(3):
        expected, found = loaded(theirs, seed), loaded(ours, seed)
        assert list(found["keys"]) == list(expected["keys"])
        assert found["data"].dtype == torch.float16 and found["target"].dtype == torch.int8
        assert torch.equal(found["data"], expected["data"].half())
        assert torch.equal(found["target"].short(), expected["target"])


def test_pixels_beyond_the_image_are_outside(cases):
    arguments = (cases(), 2, (2 * SIDE, SIDE), (2 * SIDE, SIDE), manager(), 0.33)
    expected, found = (loaded(cls(*arguments), 0) for cls in (nnUNetDataLoader, CompactDataLoader))
    assert torch.equal(found["data"], expected["data"].half())
    assert torch.equal(found["target"].short(), expected["target"]) and (found["target"][:, :, 0] == -1).all()


def test_batches_with_transforms_are_those_of_nnunet(cases):
    arguments = (cases(), 2, (SIDE, SIDE), (SIDE, SIDE), manager(), 0.33)
    keep = {"transforms": lambda **sample: sample}
    expected, found = (loaded(cls(*arguments, **keep), 0) for cls in (nnUNetDataLoader, CompactDataLoader))
    assert found["data"].dtype == torch.float32
    assert torch.equal(found["data"], expected["data"]) and torch.equal(found["target"], expected["target"])


def test_values_beyond_float16_stay_in_float32(cases):
    assert image_dtype(["ZScoreNormalization", "CTNormalization"]) == torch.float16
    assert image_dtype(["RGBTo01Normalization", "NoNormalization"]) == torch.float32
    assert image_dtype(["A normalization of somebody else"]) == torch.float32
    arguments = (cases(), 2, (SIDE, SIDE), (SIDE, SIDE), manager(), 0.33)
    loader = partial(CompactDataLoader, image_dtype=torch.float32)
    expected, found = (loaded(cls(*arguments), 0) for cls in (nnUNetDataLoader, loader))
    assert torch.equal(found["data"], expected["data"])


@pytest.mark.parametrize(
    ("labels", "ignore", "dtype"),
    [((1, 2), None, torch.int8), (range(1, 128), None, torch.int8), (range(1, 129), None, torch.int16)]
    + [(range(1, 128), 128, torch.int16)],
)
def test_labels_use_one_byte_if_they_fit(labels, ignore, dtype):
    assert target_dtype(manager(labels, ignore)) == dtype


def test_nnunets_loader_is_replaced_only_inside_the_context():
    before = trainer_module.nnUNetDataLoader
    with pytest.raises(ZeroDivisionError), loads_with(CompactDataLoader):
        assert trainer_module.nnUNetDataLoader is CompactDataLoader
        raise ZeroDivisionError
    assert trainer_module.nnUNetDataLoader is before


def test_worker_collates_into_shared_memory(cases, monkeypatch):
    arguments = (cases(), 2, (SIDE, SIDE), (SIDE, SIDE), manager(), 0.33)
    alone = loaded(CompactDataLoader(*arguments), 0)
    assert not alone["data"].is_shared()
    monkeypatch.setattr(compact_loading, "in_worker", lambda: True)
    found = loaded(CompactDataLoader(*arguments), 0)
    for name in ("data", "target"):
        assert found[name].is_shared() and found[name].is_contiguous()
        assert torch.equal(found[name], alone[name])


def test_batches_pass_through_nnunets_workers(cases):
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter

    loader = CompactDataLoader(cases(), 2, (SIDE, SIDE), (SIDE, SIDE), manager(), 0.33)
    source = NonDetMultiThreadedAugmenter(loader, None, 1, 2, wait_time=0.002)
    try:
        for _ in range(5):
            batch = next(source)
            assert batch["data"].dtype == torch.float16 and batch["data"].isfinite().all() and batch["data"].any()
    finally:
        source._finish()
