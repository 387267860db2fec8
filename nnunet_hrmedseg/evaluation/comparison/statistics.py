"""Means with bootstrap intervals, and paired tests against a baseline.

Means are computed as in nnU-Net: per class over the cases in which the measure is defined, then over the classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata, wilcoxon

__all__ = ["Interval", "Paired", "holm", "mean_with_interval", "paired"]

RESAMPLES = 10_000
_CHUNK = 1_000  # resamples at a time, each with a weight for each case


@dataclass(frozen=True)
class Interval:
    """A mean over n cases and its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Paired:
    """A model against the baseline on the n cases in which both are defined.

    Attributes:
        difference: mean of model - baseline, with its bootstrap interval.
        p: two-sided Wilcoxon signed-rank test; 1 if no case differs.
        effect: matched-pairs rank-biserial correlation, from -1 (every case smaller) over 0 to 1 (every case larger).
    """

    difference: Interval
    p: float
    effect: float


def mean_with_interval(values: np.ndarray, seed: int = 0) -> Interval:
    """Return the mean and its percentile bootstrap interval over cases.

    Args:
        values: (cases,) or (cases, classes); NaN is undefined. Cases are resampled with all their classes, as only
            cases are independent.
        seed: of the resampling.
    """
    values = values[:, None] if values.ndim == 1 else values
    values = values[:, np.isfinite(values).any(axis=0)]  # without classes that no case has
    defined = np.isfinite(values)
    n = int(defined.any(axis=1).sum())
    if not n:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(np.nanmean(values, axis=0).mean())
    generator, even = np.random.default_rng(seed), np.full(len(values), 1 / len(values))
    means = []
    for _ in range(RESAMPLES // _CHUNK):
        drawn = generator.multinomial(len(values), even, size=_CHUNK).astype(np.float64)
        sums, counts = drawn @ np.where(defined, values, 0.0), drawn @ defined.astype(np.float64)
        with np.errstate(invalid="ignore"):
            means.append((sums / counts).mean(axis=1))  # NaN if no drawn case has a class
    low, high = np.nanpercentile(np.concatenate(means), (2.5, 97.5))
    return Interval(mean, float(low), float(high), n)


def paired(model: np.ndarray, baseline: np.ndarray, seed: int = 0) -> Paired:
    """Compare values (cases,) case by case. Pairs in which one is not defined are left out."""
    both = np.isfinite(model) & np.isfinite(baseline)
    differences = model[both] - baseline[both]
    interval = mean_with_interval(differences, seed)
    changed = differences[differences != 0]
    if not len(changed):
        return Paired(interval, 1.0 if len(differences) else math.nan, 0.0 if len(differences) else math.nan)
    ranks = rankdata(np.abs(changed))
    effect = float((ranks[changed > 0].sum() - ranks[changed < 0].sum()) / ranks.sum())
    return Paired(interval, float(wilcoxon(changed).pvalue), effect)


def holm(p_values: list[float]) -> list[float]:
    """Return p values with Holm's correction for multiple tests. NaN, which is not a test, stays NaN."""
    tested = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    adjusted, largest = list(p_values), 0.0
    for rank, i in enumerate(sorted(tested, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(tested) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
