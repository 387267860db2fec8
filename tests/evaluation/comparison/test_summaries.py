"""nnU-Net's own summary.json, as nnU-Net itself writes it, beside what was measured here."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.evaluation.evaluate_predictions import save_summary_json

from nnunet_hrmedseg.evaluation.comparison.summaries import check_summary

CLASSES: dict[str, Any] = {"disc": 1, "whole": (1, 2)}
# names with dots, as DICOM UIDs have
MEASURED = {
    "1.2.840.1.nii.gz": {"disc": {"Dice": 0.75, "IoU": 0.6}, "whole": {"Dice": 0.8, "IoU": 2 / 3}},
    "1.2.840.2.nii.gz": {"disc": {"Dice": math.nan, "IoU": math.nan}, "whole": {"Dice": 0.5, "IoU": 1 / 3}},
}


def write(folder: Path, before: str = "/home/a/validation/") -> Path:
    """A summary that says what was measured; `before` is what stands before the names of the files."""
    cases = [
        {
            "reference_file": f"labels/{name}",
            "prediction_file": f"{before}{name}",
            "metrics": {CLASSES[of]: {**values, "TP": 3} for of, values in measured.items()},
        }
        for name, measured in MEASURED.items()
    ]
    save_summary_json({"metric_per_case": cases, "mean": {}, "foreground_mean": {}}, str(folder / "summary.json"))
    return folder / "summary.json"


@pytest.mark.parametrize("before", ["/home/a.b/validation/", "C:\\x\\validation\\", ""])
def test_a_summary_that_fits_is_no_complaint(tmp_path: Path, before: str) -> None:
    assert check_summary(write(tmp_path, before), CLASSES, MEASURED) is None


def test_cases_that_are_not_compared_are_no_complaint(tmp_path: Path) -> None:
    assert check_summary(write(tmp_path), CLASSES, {"1.2.840.2.nii.gz": MEASURED["1.2.840.2.nii.gz"]}) is None
    assert check_summary(tmp_path / "nowhere" / "summary.json", CLASSES, MEASURED) is None


@pytest.mark.parametrize(
    ("case", "of", "measure", "value", "said"),
    [
        ("1.2.840.1.nii.gz", "disc", "Dice", 0.7500000000000001, "has 0.75 for the Dice of disc in 1.2.840.1.nii.gz"),
        ("1.2.840.2.nii.gz", "whole", "IoU", 0.5, "for the IoU of whole in 1.2.840.2.nii.gz, but the files give 0.5"),
        ("1.2.840.2.nii.gz", "disc", "Dice", 0.5, "has nan for the Dice of disc in 1.2.840.2.nii.gz"),
        ("1.2.840.1.nii.gz", "disc", "IoU", math.nan, "has 0.6 for the IoU of disc in 1.2.840.1.nii.gz"),
    ],
)
def test_a_value_that_changed_is_named_with_its_file(
    tmp_path: Path, case: str, of: str, measure: str, value: float, said: str
) -> None:
    measured = {name: {c: dict(values) for c, values in classes.items()} for name, classes in MEASURED.items()}
    measured[case][of][measure] = value
    complaint = check_summary(write(tmp_path), CLASSES, measured)
    assert complaint is not None and said in complaint and str(tmp_path / "summary.json") in complaint


def test_a_case_that_the_summary_lacks_is_named(tmp_path: Path) -> None:
    complaint = check_summary(write(tmp_path), CLASSES, {**MEASURED, "1.2.840.nii.gz": MEASURED["1.2.840.1.nii.gz"]})
    assert complaint is not None and "has nothing for the Dice of disc in 1.2.840.nii.gz" in complaint


def test_null_is_not_defined(tmp_path: Path) -> None:
    summary = write(tmp_path)
    content = json.loads(summary.read_text())
    content["metric_per_case"][1]["metrics"]["1"] = {"Dice": None, "IoU": None}
    summary.write_text(json.dumps(content))
    assert check_summary(summary, CLASSES, MEASURED) is None
