"""JSON files with values of wrong types, deep nesting or paths: the message contains the file name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from nnunet_hrmedseg.encoders.image_sources import find_images
from nnunet_hrmedseg.encoders.labeled_images import find_labeled_dataset
from nnunet_hrmedseg.encoders.run_folder import prepare_folder
from nnunet_hrmedseg.errors import CheckpointError, DataError, HRMedSegError, PlanError, SetupError
from nnunet_hrmedseg.evaluation.comparison.budget import Record
from nnunet_hrmedseg.evaluation.comparison.cost import length_of_training
from nnunet_hrmedseg.evaluation.comparison.missing import folds_of_splits
from nnunet_hrmedseg.evaluation.comparison.summaries import check_summary
from nnunet_hrmedseg.evaluation.comparison.train import is_validated
from nnunet_hrmedseg.io.files import read_json_object
from nnunet_hrmedseg.io.raw_cases import find_raw_cases, read_dataset_json
from nnunet_hrmedseg.preprocessing.canvas_dataset import canvas_data_status
from nnunet_hrmedseg.prompting.checkpoints import read_decoder
from nnunet_hrmedseg.prompting.prompt_files import read_prompts
from nnunet_hrmedseg.teachers import load_teacher
from nnunet_hrmedseg.weights import load_encoder, write_encoder
from nnunet_hrmedseg.weights.student import Student
from tests.hostile_files.common import ARCHITECTURE, CARD, DESCRIPTION, SIZE

# ---- JSON ------------------------------------------------------------------------------------------------------------

NONSENSE = {
    "deep lists": "[" * 200_000,
    "deep objects": '{"a":' * 100_000,
    "closed deep lists": "[" * 50_000 + "]" * 50_000,
    "a number": "7",
    "text": '"x"',
    "null": "null",
    "a list": "[1]",
    "a long number": "9" * 10_000,
    "not a number": "NaN",
    "infinity": "[Infinity]",
    "half": '{"a":',
    "nothing": "",
    "empty": "{}",
    "no UTF-8": "\udcff\udcfe",
    "NUL": "\0",
}

SUMMARY_CLASSES = {"a": 1}
SUMMARY_VALUES = {"c.png": {"a": {"Dice": 1, "IoU": 1}}}

JSON_READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "encoder's card": ("x.json", lambda file: load_encoder(_empty(file.with_suffix(".safetensors")))),
    "prompts": ("p.json", read_prompts),
    "run.json": ("run.json", lambda file: prepare_folder(file.parent, {"a": 1}, overwrite=False)),
    "budget.json": ("budget.json", Record.read),
    "plans": ("plans.json", lambda file: read_json_object(file, "plan")["configurations"]),
    "dataset.json": ("dataset.json", read_dataset_json),
    "images of a dataset": ("dataset.json", lambda file: find_images([_with_image(file.parent)])),
    "labeled dataset": ("dataset.json", lambda file: find_labeled_dataset(file.parent)),
    "folds": ("splits_final.json", lambda file: folds_of_splits(file.parent)),
    "config of SAM": ("config.json", lambda file: read_decoder(file.parent)),
    "validation": ("summary.json", lambda file: is_validated(file.parent, npz=True)),
    "summary": ("summary.json", lambda file: check_summary(file, SUMMARY_CLASSES, SUMMARY_VALUES)),
    "length of a training": ("budget.json", lambda file: length_of_training(file.parent)),
    "canvas data": (
        "canvas_data/record.json",
        lambda file: canvas_data_status(file.parent.parent, DESCRIPTION, None).state,
    ),
    "kind of a teacher": ("config.json", lambda file: load_teacher(file.parent, canvas=SIZE)),
}

KINDS: dict[str, type[HRMedSegError]] = {
    **dict.fromkeys(("encoder's card", "config of SAM", "kind of a teacher"), CheckpointError),
    "dataset.json": PlanError,
}
"""Error of a reader; the others raise DataError."""

QUIET = {  # results of readers that treat unreadable files as missing
    "validation": [False],
    "length of a training": [(None, None)],
    "canvas data": ["incomplete"],
    "folds": [["0"]],
    "images of a dataset": [],
}


def _empty(file: Path) -> Path:
    file.write_bytes(b"")
    return file


def _with_image(folder: Path) -> Path:
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    return folder


@pytest.mark.parametrize("nonsense", NONSENSE)
@pytest.mark.parametrize("reader", JSON_READERS)
def test_nonsense_in_json_is_rejected(tmp_path, reader, nonsense):
    name, read = JSON_READERS[reader]
    file = tmp_path / "x" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(NONSENSE[nonsense].encode("utf-8", "surrogateescape"))
    try:
        found = read(file)
    except SetupError:
        assert (reader, nonsense) == ("run.json", "empty")  # the settings of another run
    except KINDS.get(reader, DataError) as error:
        assert len(str(error)) < 3000
    except KeyError:
        assert reader == "plans" and nonsense == "empty"
    else:
        if reader == "summary":
            assert "damaged" in str(found)
        elif reader == "images of a dataset":  # unrelated dataset.json: read as a folder of images
            assert len(found) == 1
        else:
            assert found in QUIET[reader]


HUGE = 10**400  # float() raises OverflowError


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": {**ARCHITECTURE, "embed_dim": 10**9}},
        {"architecture": {**ARCHITECTURE, "embed_dim": "24"}},
        {"architecture": {**ARCHITECTURE, "depth": 10**9}},
        {"architecture": {**ARCHITECTURE, "depth": [[1]]}},
        {"architecture": {**ARCHITECTURE, "fine_channels": [HUGE]}},
        {"architecture": {**ARCHITECTURE, "fine_channels": 5}},
        {"architecture": [*ARCHITECTURE]},
        {"normalization": {"scheme": ["zscore"], "mean": [0, 0, 0], "std": [1, 1, 1]}},
        {"normalization": {"scheme": "zscore", "mean": "abc", "std": [1, 1, 1]}},
        {"normalization": {"scheme": "zscore", "mean": [0, 0, 0], "std": [1, 1, HUGE]}},
        {"normalization": {"scheme": "zscore", "mean": [0, float("nan"), 0], "std": [1, 1, 1]}},
        {"normalization": {"scheme": "zscore", "mean": [0, 0, 0], "std": [1, 1, 0]}},
        {"teacher": "sam"},
        {"recipe": [1]},
        {"format": [1]},
        {"sha256": {"a": "b" * 10**6}},
    ],
    ids=repr,
)
def test_cards_with_invalid_values_are_rejected(tmp_path, change):
    file = write_encoder(tmp_path / "e.safetensors", Student(ARCHITECTURE).state_dict(), CARD).path
    card = json.loads(file.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text(json.dumps({**card, **change}))
    with pytest.raises(CheckpointError) as raised:
        load_encoder(file)
    assert len(str(raised.value)) < 2000


@pytest.mark.parametrize(
    "change",
    [
        {"box": [1, 2, 3, HUGE]},
        {"box": {"x0": 1}},
        {"box": "1234"},
        {"box": True},
        {"box": [[1], 2, 3, 4]},
        {"box": [1, 2, 3, 4] * 10**5},
        {"points": 5},
        {"points": ["12"]},
        {"points": [[{"a": 1}]]},
        {"image": 7},
        {"image": "a\0.png"},
        {"class": {"a": 1}},
        {"class": [1]},
        {"class": "\x1b[2J"},  # an escape sequence for terminals
    ],
    ids=lambda change: repr(change)[:40],
)
def test_prompts_with_invalid_values_are_rejected(tmp_path, change):
    file = tmp_path / "p.json"
    file.write_text(json.dumps([{"image": "a.png", "box": [1, 2, 3, 4], **change}]))
    with pytest.raises(DataError, match="entry 1") as raised:
        read_prompts(file)
    assert len(str(raised.value)) < 2000


def test_prompts_that_are_not_finite_are_outside_any_image(tmp_path):
    file = tmp_path / "p.json"
    for change in ({"box": [1, 2, 3, float("nan")]}, {"box": [0, 0, 1e999, 4]}, {"points": [[1e999, 1, 1]]}):
        file.write_text(json.dumps([{"image": "a.png", **change}]))
        [prompt] = read_prompts(file)["a.png"]
        with pytest.raises(DataError):
            prompt.placed((10, 10))


@pytest.mark.parametrize("listed", [5, [], {"a": 5}, {"a": {"images": 5, "label": "x"}}, {"a": {"images": ["x"]}}])
def test_invalid_list_of_files_in_dataset_json_is_rejected(tmp_path, listed):
    with pytest.raises(DataError, match='"dataset" in the dataset.json'):
        find_raw_cases(tmp_path, {**DESCRIPTION, "dataset": listed})


@pytest.mark.parametrize("change", [{"epochs": -1}, {"iterations_per_epoch": ["x"]}, {"seconds_per_epoch": [HUGE]}])
def test_budgets_with_invalid_values_are_rejected(tmp_path, change):
    content = {"epochs": 5, "minutes": None, "seconds_per_epoch": [1.5], "iterations_per_epoch": [3]}
    file = tmp_path / "budget.json"
    file.write_text(json.dumps(content))
    assert Record.read(file).seconds == [1.5]
    file.write_text(json.dumps({**content, **change}))
    with pytest.raises(DataError, match=r"budget\.json is not a record"):
        Record.read(file)
