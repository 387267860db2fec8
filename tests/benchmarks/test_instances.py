"""The scores of benchmarks/instances.py."""

import numpy as np
import pytest

from benchmarks.instances import mean_scores, scores


def test_scores_of_known_objects():
    truth = np.zeros((20, 40), np.int32)
    truth[:10, :10], truth[:10, 20:30] = 1, 2
    found = np.zeros_like(truth)
    found[:10, :10], found[:10, 20:26], found[15:, :5] = 1, 2, 3  # equal; IoU 0.6; a false positive
    result = scores(truth, found)
    assert result["F1"] == pytest.approx(4 / 5) and result["AP50"] == pytest.approx(2 / 3)
    # both match at 0.5 and 0.55, then the equal one alone: 1 / (1 + 2 + 1)
    assert result["DSB"] == pytest.approx((2 * 2 / 3 + 8 * 1 / 4) / 10)
    assert result["PQ"] == pytest.approx(2 * (1 + 0.6) / 5)


def test_mean_leaves_out_images_without_objects():
    assert mean_scores({"a": {"F1": 0.5}, "b": {"F1": np.nan}}) == {"F1": 0.5}
