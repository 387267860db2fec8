"""nnU-Net's training augmentation on whole batches, on the device that they lie on.

At 1024 x 1024 nnU-Net's pipeline takes about 0.14 s of a processor core for an image: a GPU would wait for it. Here the
same transforms are applied to the whole batch on the device of the network. Random parameters are drawn by nnU-Net's
own transform objects, with their probabilities and ranges. Only the operations on images are implemented again, for all
planes (one channel of one image) at once to which a transform applies. With the same seeds, a batch of one image gives
the result of nnU-Net's pipeline.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from torch import Tensor
from torch.nn import functional as F

__all__ = ["BatchAugmentation", "UnsupportedTransformError"]

GAMMA_EPSILON = 1e-7  # batchgeneratorsv2's


Step = Callable[[Any, Tensor, Tensor, Sequence[int], Sequence[int]], tuple[Tensor, Tensor]]
"""(transform, image, segmentation, samples that it was drawn for, labels) -> image, segmentation"""


class UnsupportedTransformError(Exception):
    """A transform, or an option of one, that BatchAugmentation does not know."""


class BatchAugmentation:
    """A pipeline of nnU-Net's transforms for batches of 2D images.

    Args:
        transforms: what nnUNetTrainer.get_training_transforms returns.
        labels: every value that a segmentation may have, including the ignore label; -1 (outside) can be left out.

    Raises:
        UnsupportedTransformError: a transform of the pipeline is not supported; the message names it.
    """

    def __init__(self, transforms: BasicTransform, labels: Sequence[int]) -> None:
        steps = transforms.transforms if isinstance(transforms, ComposeTransforms) else [transforms]
        self.steps: list[tuple[RandomTransform | None, BasicTransform]] = []
        for step in steps:
            chance = step if isinstance(step, RandomTransform) else None
            transform = step.transform if isinstance(step, RandomTransform) else step
            if type(transform) not in ON_BATCHES:
                raise UnsupportedTransformError(f"there is no {type(transform).__name__} for batches")
            if isinstance(transform, SpatialTransform):
                check_spatial(transform)
            self.steps.append((chance, transform))
        self.labels = sorted({-1, *labels})

    @torch.no_grad()
    def __call__(self, image: Tensor, segmentation: Tensor) -> tuple[Tensor, Tensor]:
        """Augment a batch. The arguments may be overwritten.

        Args:
            image: (B, C, H, W) float.
            segmentation: (B, S, H, W), integers.

        Returns:
            The image, (B, C, H, W), and the target as nnU-Net's pipeline would make it: (B, S, H, W) integers, or
            (B, regions, H, W) bool.
        """
        image, segmentation = image.contiguous(), segmentation.contiguous()
        for chance, transform in self.steps:
            samples = list(range(len(image)))
            if chance is not None:
                samples = [index for index in samples if chance.get_parameters()["apply_transform"]]
            if samples:
                image, segmentation = ON_BATCHES[type(transform)](transform, image, segmentation, samples, self.labels)
        return image, segmentation


def sample_parameters(transform: BasicTransform, image: Tensor, samples: Sequence[int]) -> list[dict[str, Any]]:
    """Draw the parameters of a transform for each sample; they depend only on the number of channels and axes."""
    stand_in = torch.empty(image.shape[1], 1, 1)
    return [transform.get_parameters(image=stand_in) for _ in samples]


def channelwise(
    change: Callable[..., Tensor], *names: str, chosen: str = "apply_to_channel", shared: bool = False
) -> Step:
    """Return the step of a transform that draws channels of an image and, for each channel, named values.

    Args:
        change: (transform, planes (n, H, W), for each name n values) -> planes.
        names: names of the values among the transform's parameters.
        chosen: name of the parameter with the channels, as a mask or as indices.
        shared: whether the parameters have one value for all channels if the transform synchronizes channels.
    """

    def step(transform, image, segmentation, samples, labels):
        planes: list[int] = []
        values: list[list[Any]] = [[] for _ in names]
        for sample, parameters in zip(samples, sample_parameters(transform, image, samples), strict=True):
            channels = torch.as_tensor(parameters[chosen])
            indices = (channels.nonzero().flatten() if channels.dtype == torch.bool else channels).tolist()
            if not indices:
                continue
            planes += [sample * image.shape[1] + channel for channel in indices]
            for name, collected in zip(names, values, strict=True):
                own = torch.as_tensor(parameters[name]).tolist()
                collected += [own] * len(indices) if shared and transform.synchronize_channels else own
        if planes:
            flat, index = image.flatten(0, 1), on_device(torch.tensor(planes), image.device)
            flat.index_copy_(0, index, change(transform, flat.index_select(0, index), *values))
        return image, segmentation

    return step


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a small tensor to the device without waiting for it: a copy to a GPU must start in pinned memory for that.

    Lists, CPU tensors and 0-dimensional tensors in an operation on a GPU are copied, too, and each makes the host wait.
    """
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


def broadcast_column(values: Sequence[float], like: Tensor) -> Tensor:
    """(n,) numbers -> (n, 1, 1), on the device and of the type of `like`."""
    return on_device(torch.tensor(values, dtype=like.dtype), like.device)[:, None, None]


def brightness(transform, x, factors):
    return x * broadcast_column(factors, x)


def contrast(transform, x, factors):
    mean, low, high = x.mean((1, 2), keepdim=True), x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    changed = (x - mean) * broadcast_column(factors, x) + mean
    return changed.clamp(low, high) if transform.preserve_range else changed


def gamma(transform, x, gammas, retains, inverts):
    sign = broadcast_column([-1.0 if invert else 1.0 for invert in inverts], x)
    x = x * sign
    mean, std = x.mean((1, 2), keepdim=True), x.std((1, 2), keepdim=True)
    low = x.amin((1, 2), keepdim=True)
    extent = x.amax((1, 2), keepdim=True) - low
    x = ((x - low) / extent.clamp_min(GAMMA_EPSILON)) ** broadcast_column(gammas, x) * extent + low
    kept = (x - x.mean((1, 2), keepdim=True)) * (std / x.std((1, 2), keepdim=True).clamp_min(GAMMA_EPSILON)) + mean
    return torch.where(broadcast_column(retains, x) > 0, kept, x) * sign


def noise(transform, x, sigmas):
    return x + torch.randn_like(x) * broadcast_column(sigmas, x)


def blur(transform, x, sigmas):
    for axis, along in enumerate(zip(*sigmas, strict=True)):
        x = blurred(x, along, axis)
    return x


def blurred(x: Tensor, sigmas: Sequence[float], axis: int) -> Tensor:
    """Planes (n, H, W), each blurred along one axis by a Gaussian of its own width, with reflected borders."""
    halves = [odd_nearest(6 * sigma + 0.5) // 2 for sigma in sigmas]  # as far as batchgeneratorsv2 goes
    half = max(halves)
    offsets = torch.arange(-half, half + 1.0)
    kernels = torch.stack(
        [torch.exp(-0.5 * (offsets / s) ** 2) * (offsets.abs() <= h) for s, h in zip(sigmas, halves, strict=True)]
    )
    kernels = on_device((kernels / kernels.sum(1, keepdim=True)).to(x.dtype), x.device)
    if axis == 0:
        return F.conv2d(F.pad(x[None], (0, 0, half, half), mode="reflect"), kernels[:, None, :, None], groups=len(x))[0]
    return F.conv2d(F.pad(x[None], (half, half, 0, 0), mode="reflect"), kernels[:, None, None, :], groups=len(x))[0]


def odd_nearest(value: float) -> int:
    rounded = round(value)
    if rounded % 2:
        return rounded
    return rounded + 1 if value >= rounded else rounded - 1


def low_resolution(transform, x, scales):
    size = x.shape[1:]
    planes = []
    for plane, scale in zip(x, scales, strict=True):  # each has a size of its own
        smaller = [round(a * b) for a, b in zip(size, scale, strict=True)]
        small = F.interpolate(plane[None, None], smaller, mode="nearest-exact")
        planes.append(F.interpolate(small, size, mode="bilinear")[0, 0])
    return torch.stack(planes)


def mirror(transform, image, segmentation, samples, labels):
    mirrored: dict[tuple[int, ...], list[int]] = {}
    for sample, parameters in zip(samples, sample_parameters(transform, image, samples), strict=True):
        mirrored.setdefault(tuple(axis + 2 for axis in parameters["axes"]), []).append(sample)
    mirrored.pop((), None)
    for axes, members in mirrored.items():
        index = on_device(torch.tensor(members), image.device)
        for maps in (image, segmentation):
            maps.index_copy_(0, index, maps.index_select(0, index).flip(axes))
    return image, segmentation


def mask_image(transform, image, segmentation, samples, labels):
    outside = segmentation[:, transform.channel_idx_in_seg] < 0
    for channel in transform.apply_to_channels:
        image[:, channel].masked_fill_(outside, transform.set_outside_to)
    return image, segmentation


def remove_label(transform, image, segmentation, samples, labels):
    channels = transform.segmentation_channels
    for channel in range(segmentation.shape[1]) if channels is None else channels:
        part = segmentation[:, channel]
        part.masked_fill_(part == transform.label_value, transform.set_to)
    return image, segmentation


def to_regions(transform, image, segmentation, samples, labels):
    values = segmentation[:, transform.channel_in_seg]
    regions = []
    for region in transform.regions:
        first, *others = [values == int(label) for label in region.tolist()]
        regions.append(reduce(torch.logical_or, others, first))
    return image, torch.stack(regions, 1)


def check_spatial(transform: SpatialTransform) -> None:
    expected = {
        "p_elastic_deform": 0,
        "random_crop": False,
        "mode_image": "bilinear",
        "padding_mode_image": "zeros",
        "mode_seg": "bilinear",
        "border_mode_seg": "constant",
        "padding_value_seg": -1,
        "seg_tiebreak": "nearest",
        "align_corners": False,
    }
    for name, value in expected.items():
        if getattr(transform, name, value) != value:
            raise UnsupportedTransformError(
                f"SpatialTransform with {name}={getattr(transform, name)!r} is not done on batches"
            )


def spatial(transform, image, segmentation, samples, labels):
    if list(transform.patch_size) != list(image.shape[2:]):
        raise UnsupportedTransformError(
            f"images of {list(image.shape[2:])} are not cropped to {list(transform.patch_size)} here"
        )
    probe = copy.copy(transform)  # draws for a patch of one pixel, whose grid costs nothing
    probe.patch_size, probe._grid_cache = (1, 1), {}
    moved, matrices = [], []
    for sample in samples:
        matrix = probe.get_parameters(image=torch.empty(image.shape[1], *image.shape[2:], device="meta"))["affine"]
        if matrix is not None:
            moved.append(sample)
            matrices.append(torch.from_numpy(matrix).float())
    if moved:
        grid, index = sampling_grid(torch.stack(matrices), image), on_device(torch.tensor(moved), image.device)
        images, segmentations = image.index_select(0, index), segmentation.index_select(0, index)
        image.index_copy_(0, index, F.grid_sample(images, grid, padding_mode="zeros", align_corners=False))
        segmentation.index_copy_(0, index, resampled_labels(segmentations, grid, labels))
    return image, segmentation


def sampling_grid(matrices: Tensor, image: Tensor) -> Tensor:
    """Affine matrices (n, 2, 2) on (row, column) offsets from the center, in pixels -> grid_sample's (n, H, W, 2)."""
    height, width = image.shape[2:]
    rows, columns = (torch.linspace((1 - s) / 2, (s - 1) / 2, s, device=image.device) for s in (height, width))
    points = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).view(1, -1, 2)
    moved = points @ on_device(matrices, image.device).transpose(1, 2)
    moved = moved.unflatten(1, (height, width))
    return torch.stack((moved[..., 1] / (width / 2), moved[..., 0] / (height / 2)), -1)


def resampled_labels(segmentation: Tensor, grid: Tensor, labels: Sequence[int]) -> Tensor:
    """Labels (n, S, H, W) at the points of a grid: the one with the largest bilinear weight, outside: -1.

    As batchgeneratorsv2, to its rounding: weights in thousandths and half precision, ties to the nearest neighbor.
    """
    outside = -1
    nearest = F.grid_sample(segmentation.float() - outside, grid, mode="nearest", align_corners=False) + outside
    nearest = nearest.to(segmentation.dtype)
    best = torch.full(segmentation.shape, -torch.inf, dtype=torch.float16, device=segmentation.device)
    nearest_weight = best.clone()
    result = torch.empty_like(segmentation)
    for label in labels:
        beyond = 1000.0 * (label == outside)
        indicator = (segmentation == label) * 1000.0 - beyond
        weight = (F.grid_sample(indicator, grid, padding_mode="zeros", align_corners=False) + beyond).to(torch.float16)
        nearest_weight = torch.where(nearest == label, weight, nearest_weight)
        result.masked_fill_(weight > best, label)
        best = torch.maximum(weight, best)
    return torch.where(nearest_weight == best, nearest, result).to(segmentation.dtype)


ON_BATCHES: dict[type[BasicTransform], Step] = {
    SpatialTransform: spatial,
    GaussianNoiseTransform: channelwise(noise, "sigmas", chosen="apply_mask", shared=True),
    GaussianBlurTransform: channelwise(blur, "sigmas", shared=True),
    MultiplicativeBrightnessTransform: channelwise(brightness, "multipliers"),
    ContrastTransform: channelwise(contrast, "multipliers"),
    SimulateLowResolutionTransform: channelwise(low_resolution, "scales"),
    GammaTransform: channelwise(gamma, "gamma", "retain_stats", "invert_image"),
    MirrorTransform: mirror,
    MaskImageTransform: mask_image,
    RemoveLabelTansform: remove_label,
    ConvertSegmentationToRegionsTransform: to_regions,
}
