import pytest

from benchmarks.segmaformer_memory import DEFAULTS, counted_gb, estimated_gb
from nnunet_hrmedseg.plans.segmaformer import SegMaFormerMemory

SHAPE = {"num_input_channels": 1, "num_classes": 3, "strides": [[4, 4, 4], [2, 2, 2], [2, 2, 2], [2, 2, 2]]}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"classes": 6}, {"patch": (12, 96, 96), "spacing": (5, 1, 1)}], ids=str)
@pytest.mark.parametrize("recompute", [False, True])
def test_estimate_matches_the_count(changes, recompute):
    row = {**DEFAULTS, **changes, "recompute": recompute}
    assert estimated_gb(row) == pytest.approx(counted_gb(row), rel=0.2 if recompute else 0.1)


def test_description_compares_both_choices():
    kept, recomputed = (
        SegMaFormerMemory().describe(2, [128, 128, 128], recompute=recompute, planner="nnUNetPlannerX", **SHAPE)
        for recompute in (False, True)
    )
    planned = "in the plans that -pl nnUNetPlannerX writes"
    assert "1.3 GB (float32, batch size 2, 128 x 128 x 128)" in kept
    assert f"recompute=true {planned} reduces it to 0.55 GB" in kept and "longer" in kept
    assert "0.55 GB (float32" in recomputed and f"recompute=false {planned} increases it to 1.3 GB" in recomputed
