"""What can be compared: the same cases, left out of training by the same folds. The rest is refused in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_hrmedseg.errors import HRMedSegError, format_names
from nnunet_hrmedseg.evaluation.comparison.models import Model

__all__ = ["Matched", "choose_baseline", "match"]


@dataclass
class Matched:
    """Models with a prediction each for the same cases."""

    folds: list[str]
    truth: dict[str, Path]  # case -> reference segmentation
    files: dict[Model, dict[str, Path]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def choose_baseline(models: Sequence[Model], wanted: str | None = None) -> Model:
    """The model of this name (or the only one whose name contains it); by default stock nnU-Net's.

    Raises:
        HRMedSegError: no model is called that, or several are.
    """
    if wanted is None:
        stock = [model for model in models if model.name.startswith("nnUNetTrainer__") and model.files]
        trained = [model for model in models if model.files]
        return (stock or trained or list(models))[0]
    found = [model for model in models if model.name == wanted] or [model for model in models if wanted in model.name]
    names = ", ".join(model.name for model in models)
    if not found:
        raise HRMedSegError(f"--baseline {wanted}: no model is called that. There are {names}.")
    if len(found) > 1:
        raise HRMedSegError(f"--baseline {wanted} fits {len(found)} models. Give one whole name of {names}.")
    return found[0]


def match(models: Sequence[Model], baseline: Model, truth: dict[str, Path], folds: Sequence[str] | None) -> Matched:
    """Keep the models that predicted what the baseline predicted, and say of the others why not.

    folds: those to compare; None for all that the baseline has.

    Raises:
        HRMedSegError: the baseline itself lacks a fold, or has no case with a reference segmentation.
    """
    folds = list(folds) if folds else baseline.folds
    wanted = baseline.of_folds(folds)
    if not wanted:
        has = ", ".join(baseline.folds) or "none"
        raise HRMedSegError(
            f"{baseline.name} has validated folds {has}, and not {', '.join(folds) or 'any'}. Train what is missing "
            "(nnUNetv2_train, or --train here), or give the folds to compare: -f ..."
        )
    warnings = [f"{model.name}: {note}." for model in models for note in model.notes]
    untrue = sorted(set(wanted) - set(truth))
    if untrue:
        warnings.append(
            f"{len(untrue)} predictions have no reference segmentation and are left out: {format_names(untrue)}."
        )
    cases = sorted(set(wanted) & set(truth))
    if not cases:
        raise HRMedSegError(
            f"None of the {len(wanted)} cases of {baseline.name} has a reference segmentation ({format_names(sorted(wanted))})."
        )
    matched = Matched(folds, {case: truth[case] for case in cases}, warnings=warnings)
    for model in models:
        files = model.of_folds(folds)
        if files is None:
            matched.warnings.append(
                f"{model.name} is not compared: it has folds {', '.join(model.folds) or 'none'}, the baseline "
                f"{baseline.name} {', '.join(folds)}. Train what is missing, or give the folds that all have: -f ..."
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
        matched.warnings.append("Only one model is left: there is nothing to compare it with.")
    return matched


def _both_ways(a: set[str], b: set[str]) -> list[tuple[set[str], set[str]]]:
    return [(a, b), (b, a)]
