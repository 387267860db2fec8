"""Results of a comparison, from which tables, figures, gallery and report are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce

import numpy as np

from nnunet_hrmedseg.evaluation.comparison.cost import Cost
from nnunet_hrmedseg.evaluation.comparison.statistics import Interval, Paired, holm, mean_with_interval, paired

__all__ = ["MEAN", "Results"]

MEAN = "mean"  # over the classes, as nnU-Net's foreground_mean


@dataclass
class Results:
    """Values of all models, cases, classes and measures, in arrays whose axes follow the lists of names.

    Undefined values are NaN.
    """

    dataset: str
    folds: list[str]
    cases: list[str]
    classes: list[str]
    measures: list[str]
    unit: str  # of distances: px or mm
    dimensions: int
    tolerance: float
    models: list[str]
    baseline: str
    values: dict[str, np.ndarray]  # model -> (cases, classes, measures)
    sizes: dict[str, np.ndarray]  # model -> (cases, classes), areas or volumes
    true_sizes: np.ndarray  # (cases, classes)
    surface_library: str | None = None  # name and version, where there are measures on surfaces
    costs: dict[str, Cost | str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def titles(self) -> dict[str, str]:
        """Model -> short name, without the trainer, plans or configuration that all models share."""
        parts = {model: model.split("__") for model in self.models if model.count("__") == 2}
        kept = [i for i in range(3) if len({part[i] for part in parts.values()}) > 1] or [0]
        titles = {model: "__".join(part[i] for i in kept) for model, part in parts.items()}
        for model in self.models:
            if model not in parts:  # the name of an ensemble contains its members' names
                titles[model] = reduce(lambda name, member: name.replace(*member), list(titles.items()), model)
        return titles

    @property
    def rows(self) -> list[str]:
        """The classes, preceded by their mean if there are several."""
        return [MEAN, *self.classes] if len(self.classes) > 1 else list(self.classes)

    @property
    def rivals(self) -> list[str]:
        """All models except the baseline."""
        return [model for model in self.models if model != self.baseline]

    def class_values(self, model: str, row: str, measure: str) -> np.ndarray:
        """Return (cases, classes): one class, or all classes for the mean."""
        values = self.values[model][:, :, self.measures.index(measure)]
        return values if row == MEAN else values[:, [self.classes.index(row)]]

    def case_means(self, model: str, measure: str) -> np.ndarray:
        """Return (cases,): the mean over the classes in which the measure is defined, or NaN."""
        values = self.class_values(model, MEAN, measure)
        defined = np.isfinite(values)
        sums = np.where(defined, values, 0).sum(axis=1)
        return np.divide(sums, defined.sum(axis=1), out=np.full(len(values), np.nan), where=defined.any(axis=1))

    def interval(self, model: str, row: str, measure: str) -> Interval:
        return mean_with_interval(self.class_values(model, row, measure))

    def tests(self) -> dict[tuple[str, str, str], tuple[Paired, float]]:
        """Return (model, class, measure) -> paired comparison with the baseline, and its p with Holm's correction.

        All classes and measures of a model are one family. The mean over the classes is not tested.
        """
        found = {}
        for model in self.rivals:
            keys = [(model, name, measure) for name in self.classes for measure in self.measures]
            pairs = [
                paired(
                    self.class_values(model, name, measure)[:, 0], self.class_values(self.baseline, name, measure)[:, 0]
                )
                for _, name, measure in keys
            ]
            for key, pair, corrected in zip(keys, pairs, holm([pair.p for pair in pairs]), strict=True):
                found[key] = (pair, corrected)
        return found

    def false_alarms(self, model: str, name: str) -> tuple[int, int]:
        """Return the number of cases without this class where the model predicted it, and of all cases without it."""
        index = self.classes.index(name)
        without = self.true_sizes[:, index] == 0
        return int((without & (self.sizes[model][:, index] > 0)).sum()), int(without.sum())
