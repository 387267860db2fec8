import pytest

from benchmarks.training_memory import DEFAULTS, counted_gb, estimated_gb
from nnunet_hrmedseg.plans.memory import GPU_CONTEXT_GB, largest_batch_size, said_in_words, training_memory_gb

NETWORK = {"num_input_channels": 3, "num_classes": 2, "embed_dim": 96, "depth": 10}


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
def test_the_estimate_is_what_is_counted(changes, recompute):
    canvas = (1024, 512) if recompute else (256, 256)  # smaller, weights and strips count more than the images
    row = {**DEFAULTS, "canvas": canvas, **changes, "recompute": recompute}
    assert estimated_gb(row) == pytest.approx(counted_gb(row), rel=0.15 if recompute else 0.12)


@pytest.mark.parametrize("batch_size, published_gb", [(1, 0.59), (4, 2.6), (16, 9.4)])
def test_the_estimate_beside_the_published_memory(batch_size, published_gb):
    """Both versions of the paper: 0.59 GB per 1024 x 1024 image, 9.4 GB for a batch of 16 (float32)."""
    fast, frugal = (training_memory_gb(batch_size, (1024, 1024), **NETWORK, recompute=r) for r in (False, True))
    assert 0.8 * published_gb < fast < published_gb
    assert frugal < published_gb / 3


@pytest.mark.parametrize("target", [1.5, 4, 8, 11, 24])
def test_the_largest_batch_fits_and_one_more_does_not(target):
    batch = largest_batch_size(target, (1024, 1024), **NETWORK)
    assert training_memory_gb(batch, (1024, 1024), **NETWORK) + GPU_CONTEXT_GB <= target
    assert training_memory_gb(batch + 1, (1024, 1024), **NETWORK) + GPU_CONTEXT_GB > target


def test_no_memory_is_no_image():
    assert largest_batch_size(0.1, (1024, 1024), **NETWORK) == 0


def test_large_memory_is_said_in_plain_digits():
    words = said_in_words(16, (4096, 4096), recompute=False, **NETWORK)
    assert "about 134 GB in float32 for 16 images of 4096 x 4096" in words and "e+" not in words
