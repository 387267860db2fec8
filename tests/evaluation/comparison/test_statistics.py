import math

import numpy as np
import pytest
from scipy.stats import wilcoxon

from nnunet_hrmedseg.evaluation.comparison.statistics import holm, mean_with_interval, paired


def test_interval_of_many_normal_values_matches_the_formula() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.1, 400)
    interval = mean_with_interval(values)
    assert interval.mean == pytest.approx(values.mean(), abs=1e-12)
    half = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert interval.n == 400


def test_means_are_over_cases_then_classes_as_in_nnunet() -> None:
    values = np.array([[0.9, np.nan], [0.7, 0.2], [0.8, np.nan], [0.6, 0.4]])
    interval = mean_with_interval(values)
    assert interval.mean == pytest.approx((0.75 + 0.3) / 2)
    assert interval.low < interval.mean < interval.high
    assert interval.n == 4


def test_absent_class_is_excluded_from_means() -> None:
    values = np.array([[0.5, np.nan], [0.7, np.nan]])
    assert mean_with_interval(values).mean == pytest.approx(0.6)
    nothing = mean_with_interval(np.full((3, 2), np.nan))
    assert nothing.n == 0 and math.isnan(nothing.mean)


def test_single_value_has_an_interval_of_zero_width() -> None:
    interval = mean_with_interval(np.array([0.5]))
    assert (interval.mean, interval.low, interval.high, interval.n) == (0.5, 0.5, 0.5, 1)


def test_interval_is_deterministic() -> None:
    values = np.random.default_rng(3).random(20)
    assert mean_with_interval(values) == mean_with_interval(values)


def test_paired_comparison() -> None:
    generator = np.random.default_rng(1)
    baseline = generator.random(30)
    model = baseline + generator.normal(0.05, 0.1, 30)
    result = paired(model, baseline)
    assert result.difference.mean == pytest.approx((model - baseline).mean())
    assert result.p == pytest.approx(wilcoxon(model, baseline).pvalue)
    assert 0 < result.effect < 1
    reverse = paired(baseline, model)
    assert reverse.effect == pytest.approx(-result.effect)
    assert reverse.p == pytest.approx(result.p)


def test_effect_is_one_if_every_case_improves() -> None:
    assert paired(np.array([0.2, 0.5, 0.9]), np.array([0.1, 0.1, 0.1])).effect == 1
    assert paired(np.array([0.0, 0.0, 0.0]), np.array([0.1, 0.2, 0.3])).effect == -1


def test_no_difference_gives_p_of_one() -> None:
    result = paired(np.ones(5), np.ones(5))
    assert (result.p, result.effect, result.difference.n) == (1.0, 0.0, 5)


def test_pairs_with_an_undefined_value_are_excluded() -> None:
    result = paired(np.array([0.5, np.nan, 0.7, 0.4]), np.array([0.4, 0.3, np.nan, 0.1]))
    assert result.difference.n == 2
    assert result.difference.mean == pytest.approx(0.2)
    assert math.isnan(paired(np.array([np.nan]), np.array([0.1])).p)


def test_holm_correction_by_hand() -> None:
    # sorted 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1, never below the previous value
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_correction_ignores_missing_tests() -> None:
    first, undefined, second = holm([0.02, math.nan, 0.04])
    assert (first, second) == pytest.approx((0.04, 0.04))
    assert math.isnan(undefined)
