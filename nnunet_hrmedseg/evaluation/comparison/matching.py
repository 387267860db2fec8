"""Select the models that can be compared: those with predictions for the same cases of the same folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_hrmedseg.errors import DataError, PlanError, format_names
from nnunet_hrmedseg.evaluation.comparison.models import Model

__all__ = ["Matched", "choose_baseline", "match"]


@dataclass
class Matched:
    """Models with one prediction each for the same cases."""

    folds: list[str]
    truth: dict[str, Path]  # case -> reference segmentation
    files: dict[Model, dict[str, Path]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def choose_baseline(models: Sequence[Model], wanted: str | None = None) -> Model:
    """Return the model with this name or the only one whose name contains it. Default: stock nnU-Net's.

    Raises:
        PlanError: no model or several models match the name.
    """
    if wanted is None:
        stock = [model for model in models if model.name.startswith("nnUNetTrainer__") and model.files]
        trained = [model for model in models if model.files]
        return (stock or trained or list(models))[0]
    found = [model for model in models if model.name == wanted] or [model for model in models if wanted in model.name]
    names = ", ".join(model.name for model in models)
    if not found:
        raise PlanError(f"--baseline {wanted} matches no model. Available models: {names}.")
    if len(found) > 1:
        raise PlanError(f"--baseline {wanted} matches {len(found)} models. Give the full name of one of {names}.")
    return found[0]


def match(models: Sequence[Model], baseline: Model, truth: dict[str, Path], folds: Sequence[str] | None) -> Matched:
    """Keep the models that predicted the same cases as the baseline. A warning states why another is left out.

    Args:
        models: to compare, the baseline included.
        baseline: determines the cases.
        truth: case -> reference segmentation.
        folds: to compare; None for all that the baseline has.

    Raises:
        DataError: the baseline lacks a fold, or has no case with a reference segmentation.
    """
    folds = list(folds) if folds else baseline.folds
    wanted = baseline.predictions(folds)
    if not wanted:
        if not baseline.folds:
            raise DataError(
                f"{baseline.name} has no validated fold. Train one of the folds 0 to 4 (nnUNetv2_train, or --train); "
                "a training with the fold `all` holds no case out."
            )
        raise DataError(
            f"{baseline.name} has the validated folds {', '.join(baseline.folds)}, but not {', '.join(folds)}. Train "
            "missing folds (nnUNetv2_train, or --train), or give the folds to compare with -f."
        )
    warnings = [f"{model.name}: {note}." for model in models for note in model.notes]
    for model in models:
        repeated = model.cases_of_several(folds)
        if repeated:
            verb = "was" if len(repeated) == 1 else "were"
            warnings.append(
                f"{model.name}: {format_names(repeated)} {verb} validated by several of the folds {', '.join(folds)}; "
                f"the prediction of the last one is compared. Give folds without common cases with -f."
            )
    without_truth = sorted(set(wanted) - set(truth))
    if without_truth:
        warnings.append(
            f"{len(without_truth)} predictions have no reference segmentation and are left out: "
            f"{format_names(without_truth)}."
        )
    cases = sorted(set(wanted) & set(truth))
    if not cases:
        raise DataError(
            f"None of the {len(wanted)} cases of {baseline.name} has a reference segmentation "
            f"({format_names(sorted(wanted))})."
        )
    matched = Matched(folds, {case: truth[case] for case in cases}, warnings=warnings)
    for model in models:
        files = model.predictions(folds)
        if files is None:
            matched.warnings.append(
                f"{model.name} is not compared: it has the folds {', '.join(model.folds) or 'none'}, "
                f"the baseline {baseline.name} has {', '.join(folds)}. Train missing folds, or give folds that all "
                f"models have with -f."
            )
        elif set(files) != set(wanted):
            only = [format_names(sorted(a - b)) or "none" for a, b in _both_ways(set(files), set(wanted))]
            matched.warnings.append(
                f"{model.name} is not compared: it predicted other cases than the baseline {baseline.name} (only it: "
                f"{only[0]}; only the baseline: {only[1]}). Were they trained with the same splits_final.json?"
            )
        else:
            matched.files[model] = {case: files[case] for case in cases}
    if len(matched.files) < 2:
        matched.warnings.append("Only one model is left, and there is nothing to compare it with.")
    return matched


def _both_ways(a: set[str], b: set[str]) -> list[tuple[set[str], set[str]]]:
    return [(a, b), (b, a)]
