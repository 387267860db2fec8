import pytest

from benchmarks.segmaformer_memory import DEFAULTS, counted_gb, estimated_gb
from nnunet_hrmedseg.plans.segmaformer_memory import describe_training_memory

SHAPE = {"num_input_channels": 1, "num_classes": 3, "strides": [[4, 4, 4], [2, 2, 2], [2, 2, 2], [2, 2, 2]]}


@pytest.mark.parametrize("changes", [{"classes": 6}, {"patch": (12, 96, 96), "spacing": (5, 1, 1)}], ids=str)
@pytest.mark.parametrize("recompute", [False, True])
def test_the_estimate_is_what_is_counted(changes, recompute):
    row = {**DEFAULTS, **changes, "recompute": recompute}
    assert estimated_gb(row) == pytest.approx(counted_gb(row), rel=0.2 if recompute else 0.1)


def test_words():
    kept, recomputed = (describe_training_memory(2, [128, 128, 128], recompute=r, **SHAPE) for r in (False, True))
    assert "about 1.3 GB in float32 for 2 patches of 128 x 128 x 128" in kept
    assert 'With "recompute": true' in kept and "about 0.55 GB" in kept and "more time" in kept
    assert "about 0.55 GB in float32" in recomputed and "less time" in recomputed
