"""Compare nnU-Net's summary.json with the values measured here."""

from __future__ import annotations

import math
import re
from pathlib import Path

from nnunet_hrmedseg.io.files import read_json
from nnunet_hrmedseg.measures import Label

__all__ = ["check_summary"]


def check_summary(
    summary: Path, classes: dict[str, Label], measured: dict[str, dict[str, dict[str, float]]]
) -> str | None:
    """Compare Dice and IoU of a summary.json with measured values, to the last digit.

    Args:
        summary: the file, which may not exist.
        classes: class -> label.
        measured: name of a prediction's file -> class -> measure -> value, for some or all cases of the summary.

    Returns:
        None if they agree, otherwise a sentence for the report.
    """
    if not summary.is_file():
        return None
    try:
        content = read_json(summary)
        cases = {
            re.split(r"[/\\]", case["prediction_file"])[-1]: {k: {**v} for k, v in case["metrics"].items()}
            for case in content["metric_per_case"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return (
            f"{summary} is from an older nnU-Net or damaged. It was not used; the predictions themselves were measured."
        )
    for file, values in measured.items():
        own = cases.get(file)
        for name, label in classes.items():
            recorded = own.get(str(label)) if own else None
            for measure in ("Dice", "IoU"):
                if recorded is None or measure not in recorded or not _same(recorded[measure], values[name][measure]):
                    found = "nothing" if recorded is None else recorded.get(measure)
                    return (
                        f"{summary} has {found!s:.100} for the {measure} of {name} in {file}, but the files give "
                        f"{values[name][measure]}: predictions or labels have changed since. The files are used."
                    )
    return None


def _same(a: object, b: float) -> bool:
    """Return whether a value from JSON equals a measured one. nnU-Net writes NaN for undefined values, others null."""
    return a == b or (math.isnan(b) and (a is None or (isinstance(a, float) and math.isnan(a))))
