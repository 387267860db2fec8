"""Format the results of a comparison: dictionaries for JSON, rows for CSV, and tables for the terminal."""

from __future__ import annotations

import csv
import datetime
import io
import math
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from nnunet_hrmedseg import __version__
from nnunet_hrmedseg.evaluation.comparison.cost import COUNTED, FROM_LOGS, MEASURED, Cost
from nnunet_hrmedseg.evaluation.comparison.results import Results
from nnunet_hrmedseg.io.files import escape_formula, json_safe
from nnunet_hrmedseg.io.machine import processor_name
from nnunet_hrmedseg.measures import MEASURES

__all__ = ["as_content", "as_csv", "as_table", "number", "p_value"]


def as_content(results: Results, device: str) -> dict[str, Any]:
    """Return all numbers for the JSON file and the report. Undefined values are None."""
    tests = results.tests()
    return json_safe(
        {
            "dataset": results.dataset,
            "baseline": results.baseline,
            "folds": results.folds,
            "cases": len(results.cases),
            "classes": results.classes,
            "unit": results.unit,
            "tolerance": results.tolerance,
            "surface_library": results.surface_library,
            "date": datetime.date.today().isoformat(),
            "machine": {"processor": processor_name(), "device": device},
            "versions": {
                "nnunet_hrmedseg": __version__,
                "nnunetv2": version("nnunetv2"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "warnings": results.warnings,
            "models": [
                {
                    "name": model,
                    "title": results.titles[model],
                    "baseline": model == results.baseline,
                    "measures": {
                        row: {measure: asdict(results.interval(model, row, measure)) for measure in results.measures}
                        for row in results.rows
                    },
                    "false_alarms": {name: list(results.false_alarms(model, name)) for name in results.classes},
                    "cost": _cost(results.costs.get(model)),
                }
                for model in results.models
            ],
            "tests": [
                {
                    "model": model,
                    "class": name,
                    "measure": measure,
                    "difference": asdict(pair.difference),
                    "p": pair.p,
                    "p_holm": corrected,
                    "effect": pair.effect,
                }
                for (model, name, measure), (pair, corrected) in tests.items()
            ],
        }
    )


def _cost(cost: Cost | str | None) -> dict[str, Any] | str | None:
    if not isinstance(cost, Cost):
        return cost
    how = {
        "parameters": COUNTED,
        "multiply_accumulates": COUNTED,
        "training_bytes": COUNTED,
        "epoch_seconds": FROM_LOGS,
        "training_seconds": FROM_LOGS,
        "predict_seconds": MEASURED,
    }
    return {**asdict(cost), "how": how}


def as_csv(results: Results) -> str:
    """Return CSV with a row for each model, case and class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "case", "class", *results.measures, "size_truth", "size"])
    for model in results.models:
        for i, case in enumerate(results.cases):
            for j, name in enumerate(results.classes):
                values = ["" if math.isnan(value) else value for value in results.values[model][i, j].tolist()]
                names = map(escape_formula, (model, case, name))
                writer.writerow([*names, *values, results.true_sizes[i, j], results.sizes[model][i, j]])
    return text.getvalue()


def as_table(content: dict[str, Any]) -> str:
    """Return tables in Markdown: means with 95 % intervals, then the differences to the baseline."""
    measures = list(next(iter(content["models"][0]["measures"].values())))
    parts = [f"{content['dataset']}: {content['cases']} cases, folds {' '.join(content['folds'])}\n"]
    for row in content["models"][0]["measures"]:
        lines = [[row, *(header(measure, content) for measure in measures)]]
        for model in content["models"]:
            intervals = [model["measures"][row][measure] for measure in measures]
            cells = [interval_text(measure, interval) for measure, interval in zip(measures, intervals, strict=True)]
            lines.append([model["title"] + (" (baseline)" if model["baseline"] else ""), *cells])
        parts.append(_aligned(lines))
    if content["tests"]:
        lines = [["against the baseline", "class", "measure", "difference", "effect", "p, Holm", "n"]]
        titles = {model["name"]: model["title"] for model in content["models"]}
        for test in content["tests"]:
            measure = test["measure"]
            lines.append(
                [
                    titles[test["model"]],
                    test["class"],
                    measure,
                    interval_text(measure, test["difference"], sign=True),
                    number(test["effect"], 2, sign=True),
                    p_value(test["p_holm"]),
                    str(test["difference"]["n"]),
                ]
            )
        parts.append(_aligned(lines))
    if content["surface_library"]:
        parts.append(f"Surface measures computed by {content['surface_library']}.\n")
    return "\n".join(parts)


def header(measure: str, content: dict[str, Any]) -> str:
    return f"{measure}, {content['unit']}" if MEASURES[measure].has_unit else measure


def interval_text(measure: str, interval: dict[str, Any], sign: bool = False) -> str:
    if interval["mean"] is None:
        return "-"
    digits = 2 if MEASURES[measure].has_unit else 4
    low, high = (number(interval[end], digits, sign) for end in ("low", "high"))
    return f"{number(interval['mean'], digits, sign)} [{low}, {high}]"


def number(value: float | None, digits: int, sign: bool = False) -> str:
    return "-" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def p_value(p: float | None) -> str:
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([padded[0], rule, *padded[1:]]) + "\n"
