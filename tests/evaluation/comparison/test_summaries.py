"""nnU-Net's summary.json, as nnU-Net writes it, compared with our measurements."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.evaluation.evaluate_predictions import save_summary_json

from nnunet_hrmedseg.evaluation.comparison.summaries import check_summary

CLASSES: dict[str, Any] = {"disc": 1, "whole": (1, 2)}
# names with dots, like DICOM UIDs
MEASURED = {
    "1.2.840.1.nii.gz": {"disc": {"Dice": 0.75, "IoU": 0.6}, "whole": {"Dice": 0.8, "IoU": 2 / 3}},
    "1.2.840.2.nii.gz": {"disc": {"Dice": math.nan, "IoU": math.nan}, "whole": {"Dice": 0.5, "IoU": 1 / 3}},
}


def write(folder: Path, before: str = "/home/a/validation/") -> Path:
    """Write a summary with the measured values; `before` is the prefix of the file names."""
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
def test_matching_summary_gives_no_warning(tmp_path: Path, before: str) -> None:
    assert check_summary(write(tmp_path, before), CLASSES, MEASURED) is None


def test_cases_that_are_not_compared_give_no_warning(tmp_path: Path) -> None:
    assert check_summary(write(tmp_path), CLASSES, {"1.2.840.2.nii.gz": MEASURED["1.2.840.2.nii.gz"]}) is None
    assert check_summary(tmp_path / "nowhere" / "summary.json", CLASSES, MEASURED) is None


@pytest.mark.parametrize(
    ("case", "of", "measure", "value", "message"),
    [
        ("1.2.840.1.nii.gz", "disc", "Dice", 0.7500000000000001, "has 0.75 for the Dice of disc in 1.2.840.1.nii.gz"),
        ("1.2.840.2.nii.gz", "whole", "IoU", 0.5, "for the IoU of whole in 1.2.840.2.nii.gz, but the files give 0.5"),
        ("1.2.840.2.nii.gz", "disc", "Dice", 0.5, "has nan for the Dice of disc in 1.2.840.2.nii.gz"),
        ("1.2.840.1.nii.gz", "disc", "IoU", math.nan, "has 0.6 for the IoU of disc in 1.2.840.1.nii.gz"),
    ],
)
def test_changed_value_is_reported_with_its_file(
    tmp_path: Path, case: str, of: str, measure: str, value: float, message: str
) -> None:
    measured = {name: {c: dict(values) for c, values in classes.items()} for name, classes in MEASURED.items()}
    measured[case][of][measure] = value
    complaint = check_summary(write(tmp_path), CLASSES, measured)
    assert complaint is not None and message in complaint and str(tmp_path / "summary.json") in complaint


def test_case_missing_in_the_summary_is_reported(tmp_path: Path) -> None:
    complaint = check_summary(write(tmp_path), CLASSES, {**MEASURED, "1.2.840.nii.gz": MEASURED["1.2.840.1.nii.gz"]})
    assert complaint is not None and "has nothing for the Dice of disc in 1.2.840.nii.gz" in complaint


def test_null_is_undefined(tmp_path: Path) -> None:
    summary = write(tmp_path)
    content = json.loads(summary.read_text())
    content["metric_per_case"][1]["metrics"]["1"] = {"Dice": None, "IoU": None}
    summary.write_text(json.dumps(content))
    assert check_summary(summary, CLASSES, MEASURED) is None
