"""model.json: writing, reading, and rejection of invalid content."""

from __future__ import annotations

import json

import pytest

from hrmedseg_onnx.sidecar import INTENSITIES, SIDECAR, Normalization, Sidecar
from nnunet_hrmedseg.errors import CheckpointError

GOOD = Sidecar(
    network="HRMedSeg",
    trainer="nnUNetTrainerHRMedSeg",
    dataset="Dataset001_Test",
    channels=["CT", "MR"],
    normalization=[
        Normalization("CTNormalization", False, {"mean": 1, "std": 2, "percentile_00_5": 0, "percentile_99_5": 9}),
        Normalization("ZScoreNormalization", True),
    ],
    canvas=[64, 128],
    transpose_forward=[0, 1, 2],
    labels={"background": 0, "all": [1, 2], "part": 2, "ignore": 3},
    regions_class_order=[1, 2],
    mirror_axes=[0, 1],
    image_reader="NaturalImage2DIO",
    file_ending=".png",
    weights="float32",
    folds={"0": "fold_0.onnx"},
    logit_difference={"0": 1e-5},
)


def test_written_description_is_read(tmp_path):
    GOOD.write(tmp_path)
    assert Sidecar.read(tmp_path) == GOOD


def test_labels_and_regions_are_counted():
    assert GOOD.has_regions and GOOD.num_outputs == 2 and GOOD.num_labels == 3


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("format", 2, "format 2"),
        ("channels", [], "channels"),
        ("channels", ["CT"], "1 channels have 2 normalizations"),
        ("normalization", [{"scheme": "Mine"}] * 2, "'Mine' is unknown"),
        ("normalization", [{"scheme": "CTNormalization", "intensities": {"mean": 1}}] * 2, "needs intensities"),
        (
            "normalization",
            [{"scheme": "CTNormalization", "intensities": dict.fromkeys(INTENSITIES, "1")}] * 2,
            "numbers",
        ),
        ("canvas", [64, 100], "multiples of 16"),
        ("canvas", [64], "multiples of 16"),
        ("transpose_forward", [0, 1, 1], "order of the axes"),
        ("labels", {"a": 1}, "background"),
        ("labels", {"background": 0, "a": "1"}, "label values"),
        ("regions_class_order", None, "regions_class_order is null"),
        ("mirror_axes", [2], "0 and 1"),
        ("image_reader", "Mine", "NaturalImage2DIO"),
        ("file_ending", "png", "such as .png"),
        ("file_ending", "./../a.png", "such as .png"),
        ("folds", {}, "folds"),
        ("folds", {"0": "../elsewhere.onnx"}, "folds"),
    ],
)
def test_invalid_values_are_rejected(tmp_path, name, value, message):
    GOOD.write(tmp_path)
    content = json.loads((tmp_path / SIDECAR).read_text())
    content[name] = value
    (tmp_path / SIDECAR).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message) as error:
        Sidecar.read(tmp_path)
    assert str(tmp_path / SIDECAR) in str(error.value) and "again" in str(error.value)


def test_missing_entries_are_reported(tmp_path):
    GOOD.write(tmp_path)
    content = json.loads((tmp_path / SIDECAR).read_text())
    del content["canvas"], content["labels"]
    (tmp_path / SIDECAR).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="lacks canvas, labels"):
        Sidecar.read(tmp_path)


def test_missing_and_invalid_files_are_reported(tmp_path):
    with pytest.raises(CheckpointError, match="hrmedseg export --onnx wrote"):
        Sidecar.read(tmp_path)
    (tmp_path / SIDECAR).write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        Sidecar.read(tmp_path)
    (tmp_path / SIDECAR).write_text("[]")
    with pytest.raises(CheckpointError, match="format None"):
        Sidecar.read(tmp_path)
