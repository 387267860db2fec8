"""Augmentation of batches compared with nnU-Net's pipeline: equal for one image, equal in distribution for many."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.intensity.inversion import InvertImageTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_hrmedseg.trainers.batch_augmentation import BatchAugmentation, UnsupportedTransformError
from tests.nnunet_releases import since_nnunet

OUTSIDE_IS_DISTINGUISHED = since_nnunet("2.7", "pixels outside the image are distinguished from background")
SIZE = (40, 56)
LABELS = (0, 1, 2, 3)

SPATIAL = {"p_elastic_deform": 0, "border_mode_seg": "constant", "padding_value_seg": -1}
TRANSFORMS = {
    "rotation": SpatialTransform(SIZE, 0, False, p_rotation=1, rotation=(-3, 3), **SPATIAL),
    "scaling": SpatialTransform(
        SIZE, 0, False, p_scaling=1, scaling=(0.7, 1.4), p_synchronize_scaling_across_axes=1, **SPATIAL
    ),
    "axes scaled apart": SpatialTransform(
        SIZE, 0, False, p_rotation=1, p_scaling=1, p_synchronize_scaling_across_axes=0, **SPATIAL
    ),
    "noise": GaussianNoiseTransform((0, 0.1), 1, True),
    "noise per channel": GaussianNoiseTransform((0.05, 0.1), 0.5, False),
    "blur": GaussianBlurTransform((0.5, 1.0), False, False, 0.5),
    "strong blur": GaussianBlurTransform((0.5, 3.0), False, True, 0.9),
    "blur together": GaussianBlurTransform((1.0, 1.0), True, False, 1),
    "brightness": MultiplicativeBrightnessTransform(BGContrast((0.75, 1.25)), False, 0.7),
    "contrast": ContrastTransform(BGContrast((0.75, 1.25)), True, False, 1),
    "contrast, free range": ContrastTransform(BGContrast((0.75, 1.25)), False, True, 0.5),
    "low resolution": SimulateLowResolutionTransform((0.5, 1), False, True, None, None, 0.7),
    "gamma": GammaTransform(BGContrast((0.7, 1.5)), 0, False, 1, 1),
    "gamma, inverted": GammaTransform(BGContrast((0.7, 1.5)), 1, False, 1, 1),
    "gamma, mixed": GammaTransform(BGContrast((0.7, 1.5)), 0.5, False, 0.7, 0.5),
    "mirror": MirrorTransform((0, 1)),
    "mask": MaskImageTransform([0, 2], 0, 0),
}


def pipeline(regions=None, ignore_label=None, use_mask=(False, False, False)):
    return nnUNetTrainer.get_training_transforms(
        SIZE, (-np.pi, np.pi), None, (0, 1), False, list(use_mask), regions=regions, ignore_label=ignore_label
    )


def batch(images: int = 1, seed: int = 0):
    random = torch.Generator().manual_seed(seed)
    image = torch.randn(images, 3, *SIZE, generator=random)
    coarse = torch.randint(-1, 4, (images, 1, 5, 7), generator=random, dtype=torch.int16)
    return image, coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)


def seeded(seed, function, *arguments, **named):
    np.random.seed(seed)
    torch.manual_seed(seed)
    return function(*arguments, **named)


def both(transforms, seed):
    """Return nnU-Net's result and ours for one image: image and segmentation, with a batch axis."""
    image, segmentation = batch(seed=seed)
    theirs = seeded(seed, copy.deepcopy(transforms), image=image[0].clone(), segmentation=segmentation[0].clone())
    ours = seeded(seed, BatchAugmentation(transforms, LABELS), image.clone(), segmentation.clone())
    return (theirs["image"][None], theirs["segmentation"][None]), ours


@pytest.mark.parametrize("name", TRANSFORMS)
def test_single_image_equals_that_of_nnunet(name):
    changed = 0
    for seed in range(8):
        theirs, ours = both(TRANSFORMS[name], seed)
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=2e-5)
        assert (ours[1] != theirs[1]).float().mean() < 2e-3  # ties broken by rounding
        changed += not torch.equal(ours[0], batch(seed=seed)[0])
    assert changed >= 4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"regions": [(1, 2, 3), (2,)]},
        {"regions": [(1, 2), 2], "ignore_label": 3},
        {"use_mask": [True, False, True]},
    ],
    ids=["labels", "regions", "regions and ignore label", "masked"],
)
@OUTSIDE_IS_DISTINGUISHED
def test_complete_pipeline_on_one_image(options):
    for seed in range(30):
        theirs, ours = both(pipeline(**options), seed)
        assert (ours[0] - theirs[0]).abs().max() < 1e-3
        assert ours[1].dtype == theirs[1].dtype and ours[1].shape == theirs[1].shape
        assert (ours[1] != theirs[1]).float().mean() < 2e-3


@OUTSIDE_IS_DISTINGUISHED
def test_images_of_a_batch_are_augmented_independently():
    """Changes of images in batches of 16 have the same distribution as in nnU-Net's pipeline (Kolmogorov-Smirnov)."""
    from scipy.stats import ks_2samp

    transforms, images = pipeline(), 480
    image, segmentation = batch()
    expected = [
        seeded(seed, transforms, image=image[0].clone(), segmentation=segmentation[0].clone()) for seed in range(images)
    ]
    augmentation = BatchAugmentation(transforms, LABELS)
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for seed in range(images // 16):
        many = image.expand(16, -1, -1, -1).clone(), segmentation.expand(16, -1, -1, -1).clone()
        found += zip(*seeded(1000 + seed, augmentation, *many), strict=True)
    statistics = {
        "mean": lambda image, target: image[0].mean(),
        "deviation": lambda image, target: image[1].std(),
        "largest": lambda image, target: image[2].max(),
        "corner": lambda image, target: image[0, 0, 0],
        "smoothness": lambda image, target: (image[0, 1:] - image[0, :-1]).abs().mean(),
        "channels": lambda image, target: (image[0] * image[1]).mean(),
        "background": lambda image, target: (target == 0).float().mean(),
        "left": lambda image, target: (target[..., : SIZE[1] // 2] == 2).float().mean(),
    }
    for name, statistic in statistics.items():
        theirs = [float(statistic(one["image"], one["segmentation"])) for one in expected]
        ours = [float(statistic(*one)) for one in found]
        assert ks_2samp(theirs, ours).pvalue > 1e-3, name
        assert len(set(ours)) > images / 8, name


def test_unknown_transform_is_reported():
    with pytest.raises(UnsupportedTransformError, match="InvertImageTransform"):
        BatchAugmentation(ComposeTransforms([RandomTransform(InvertImageTransform(1, 1, 1), 0.5)]), LABELS)


def test_unknown_option_is_reported():
    with pytest.raises(UnsupportedTransformError, match="p_elastic_deform=0.5"):
        BatchAugmentation(SpatialTransform(SIZE, 0, False, p_elastic_deform=0.5), LABELS)


class OneDevice(TorchDispatchMode):
    """Raise for operations that fail on a GPU or make the host wait for it: CPU tensors combined with tensors of the
    device, and indexing, whose lists and masks become CPU tensors.

    The device is 'meta', whose tensors have no values: operators that read values raise as well.
    """

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert not function.overloadpacket.__name__.startswith("index_put") and "index.Tensor" not in str(function)
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        assert len(devices) < 2, f"{function} gets tensors of {sorted(devices)}"
        return function(*args, **kwargs)


@pytest.mark.parametrize(
    "options",
    [{}, {"regions": [(1, 2), 2], "ignore_label": 3}, {"use_mask": [True, False, True]}],
    ids=["labels", "regions and ignore label", "masked"],
)
def test_augmentation_does_not_wait_for_the_device(options):
    transforms = pipeline(**options)
    for step in transforms.transforms:
        if isinstance(step, RandomTransform):
            step.apply_probability = 1
    augmentation = BatchAugmentation(transforms, LABELS)
    (spatial,) = (step for _, step in augmentation.steps if isinstance(step, SpatialTransform))
    spatial.p_rotation = spatial.p_scaling = 1
    for seed in range(2):
        image = torch.empty(4, 3, *SIZE, device="meta")
        segmentation = torch.empty(4, 1, *SIZE, dtype=torch.int16, device="meta")
        with OneDevice():
            image, target = seeded(seed, augmentation, image, segmentation)
        assert image.device.type == target.device.type == "meta"
        assert image.shape == (4, 3, *SIZE) and image.dtype == torch.float32
        assert target.shape == (4, 3 if "regions" in options else 1, *SIZE)


@pytest.mark.parametrize("step", ["planes by a list", "a number as a tensor", "a region of the CPU"])
def test_hidden_waits_are_detected(step):
    maps = torch.zeros(4, 8, 8, device="meta")
    careless = {
        "planes by a list": lambda: maps[[0, 2]],
        "a number as a tensor": lambda: torch.where(maps > 0, torch.tensor(1.0), maps),
        "a region of the CPU": lambda: torch.isin(maps, torch.tensor([1.0, 2.0])),
    }
    with pytest.raises(AssertionError, match="cpu|index"), OneDevice():
        careless[step]()


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16])
def test_labels_of_both_widths_are_augmented_equally(dtype):
    image, segmentation = batch(images=4)
    augmentation = BatchAugmentation(pipeline(), LABELS)
    _, expected = seeded(3, augmentation, image.clone(), segmentation.clone())
    _, found = seeded(3, augmentation, image.clone(), segmentation.to(dtype))
    assert found.dtype == dtype and torch.equal(found.long(), expected.long())
