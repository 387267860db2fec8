import pytest
import torch

from benchmarks.training_memory import DEFAULTS, LiveBytes, counted_gb, estimated_gb
from nnunet_hrmedseg.architectures import HRMedSeg
from nnunet_hrmedseg.plans.hrmedseg_memory import HRMedSegMemory
from nnunet_hrmedseg.plans.memory import (
    AUTOCAST,
    COMPILED,
    GPU_CONTEXT_GB,
    LinearMemory,
    describe_memory_without_recompute,
)
from nnunet_hrmedseg.trainers.losses import dice_and_focal
from tests.fake_cuda import fake_cuda

MODEL = HRMedSegMemory()
NETWORK = {"num_input_channels": 3, "num_classes": 2, "embed_dim": 96, "depth": 10}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"classes": 6},
        {"channels": 1},
        {"depth": 4},
        {"embed_dim": 48},
        {"embed_dim": 192, "depth": 4},
        {"canvas": (512, 128), "batch_size": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("recompute", [False, True])
def test_estimate_equals_the_counted_memory(changes, recompute):
    canvas = (1024, 512) if recompute else (256, 256)  # on a smaller canvas, weights and strips dominate
    row = {**DEFAULTS, "canvas": canvas, **changes, "recompute": recompute}
    assert estimated_gb(row) == pytest.approx(counted_gb(row), rel=0.15 if recompute else 0.12)


@pytest.mark.parametrize("batch_size, published_gb", [(1, 0.59), (4, 2.6), (16, 9.4)])
def test_estimate_is_close_to_the_published_memory(batch_size, published_gb):
    """Both versions of the paper: 0.59 GB per 1024 x 1024 image, 9.4 GB for a batch of 16 (float32)."""
    fast, recomputed = (MODEL.training_gb(batch_size, (1024, 1024), **NETWORK, recompute=r) for r in (False, True))
    assert 0.8 * published_gb < fast < published_gb
    assert recomputed < published_gb / 3


@pytest.mark.parametrize("target", [1.5, 4, 8, 11, 24])
def test_largest_batch_fits_and_a_larger_one_does_not(target):
    batch = MODEL.largest_batch_size(target, (1024, 1024), **NETWORK)
    assert MODEL.training_gb(batch, (1024, 1024), **NETWORK) + GPU_CONTEXT_GB <= target
    assert MODEL.training_gb(batch + 1, (1024, 1024), **NETWORK) + GPU_CONTEXT_GB > target


def test_no_memory_gives_batch_size_zero():
    assert MODEL.largest_batch_size(0.1, (1024, 1024), **NETWORK) == 0


def test_large_memory_is_described_in_plain_digits():
    description = MODEL.describe(16, (4096, 4096), recompute=False, planner="nnUNetPlannerX", **NETWORK)
    assert description.startswith("Estimated training memory: 134 GB (float32, batch size 16, 4096 x 4096)")
    assert "arch_kwargs.recompute=true in the plans that -pl nnUNetPlannerX writes reduces it to" in description
    assert "e+" not in description


def test_linear_memory_grows_with_pixels_classes_and_channels():
    model = LinearMemory(parameters=1e6, per_pixel=100, per_pixel_recomputed=30, per_class=2, per_channel=4)
    network = {"num_input_channels": 3, "num_classes": 5, "some_width": 7}
    assert model.training_gb(0, (1000, 1000), **network) == pytest.approx(0.016)
    assert model.training_gb(2, (1000, 1000), **network) == pytest.approx(0.016 + 2 * 0.122)
    assert model.training_gb(2, (1000, 1000), recompute=True, **network) == pytest.approx(0.016 + 2 * 0.052)


@pytest.mark.parametrize(
    "mode, recompute, batch_size, classes, measured_gb",
    [
        (AUTOCAST, False, 16, 2, 6.65),
        (AUTOCAST, False, 16, 14, 6.84),
        (AUTOCAST, False, 2, 2, 0.92),
        (AUTOCAST, True, 16, 2, 1.49),
        (AUTOCAST, True, 16, 14, 1.54),
        (AUTOCAST, True, 2, 2, 0.26),
        (COMPILED, False, 16, 2, 4.44),
        (COMPILED, False, 16, 14, 4.73),
        (COMPILED, True, 16, 2, 1.26),
        (COMPILED, True, 16, 14, 1.26),
    ],
)
def test_estimate_equals_the_peak_of_the_cuda_allocator(mode, recompute, batch_size, classes, measured_gb):
    """Peaks of a whole step for 1024 x 1024 x 3, of torch's own allocator (docs/benchmarks/gpu.md)."""
    network = {**NETWORK, "num_classes": classes, "recompute": recompute, "mode": mode}
    estimate = MODEL.training_gb(batch_size, (1024, 1024), **network)
    assert estimate == pytest.approx(measured_gb, rel=0.12)
    assert batch_size < 16 or estimate > measured_gb


@pytest.mark.parametrize("classes", [2, 14])
def test_compiled_batch_of_16_fits_the_target(classes):
    network = {**NETWORK, "num_classes": classes, "mode": COMPILED}
    kept, recomputed = (MODEL.training_gb(16, (1024, 1024), **network, recompute=r) for r in (False, True))
    assert kept <= 0.30 * 16 and recomputed <= 0.10 * 16


@pytest.mark.parametrize("free, expected", [(None, False), (10**9, True), (20 * 10**9, False)])
def test_layers_are_recomputed_if_memory_is_short(free, expected):
    assert MODEL.must_recompute(16, (1024, 1024), free, **NETWORK) is expected


def test_advice_for_larger_gpus():
    words = describe_memory_without_recompute(26.2, 80, 3)
    assert "-gpu_memory_target 27" in words and "-d 3" in words and "80 GB" in words
    assert describe_memory_without_recompute(26.2, 24, 3) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "classes, batch_size, recompute", [(2, 16, True), (14, 16, True), (14, 2, True), (50, 16, True), (2, 1, True)]
)
def test_validation_needs_no_more_memory_than_training(classes, batch_size, recompute):
    """Counted on CUDA without a GPU, at 512 x 512: a training step with recomputation needs the least."""
    side = 512
    with fake_cuda():
        network = HRMedSeg(3, classes, depth=2).eval()
        image = torch.empty(batch_size, 3, side, side)
        target = torch.zeros(batch_size, 1, side, side, dtype=torch.int16)
        with LiveBytes() as counter, torch.no_grad(), torch.autocast("cuda"):
            dice_and_focal(regions=False).with_counts(network.quarter_logits(image), target)
    taken = counter.peak + target.nbytes
    weights = sum(parameter.nbytes for parameter in network.parameters())
    estimate = MODEL.training_gb(
        batch_size,
        (side, side),
        num_input_channels=3,
        num_classes=classes,
        depth=2,
        recompute=recompute,
        mode=AUTOCAST,
    )
    assert image.nbytes < taken and (taken + 4 * weights) / 1e9 < estimate
