"""Whether nnU-Net's own summary.json says what was measured here."""

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
    """None where the file agrees in Dice and IoU to the last digit, else what is the matter, in words.

    measured: name of the prediction's file -> class -> measure -> value, of all that the summary is about, or some.
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
            f"{summary} is of an older nnU-Net, or damaged: the predictions beside it were measured, it was not read."
        )
    for file, values in measured.items():
        own = cases.get(file)
        for name, label in classes.items():
            of_class = own.get(str(label)) if own else None
            for measure in ("Dice", "IoU"):
                if of_class is None or measure not in of_class or not _same(of_class[measure], values[name][measure]):
                    said = "nothing" if of_class is None else of_class.get(measure)
                    return (
                        f"{summary} says {said!s:.100} for the {measure} of {name} in {file}, the files give "
                        f"{values[name][measure]}: predictions or labels were changed since. The files count."
                    )
    return None


def _same(a: object, b: float) -> bool:
    """a: as JSON has it; nnU-Net writes NaN, others null."""
    return a == b or (math.isnan(b) and (a is None or (isinstance(a, float) and math.isnan(a))))
