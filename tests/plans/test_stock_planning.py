"""Requirements of nnU-Net's planning for dataset.json."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from nnunet_hrmedseg.errors import PlanError, SetupError
from nnunet_hrmedseg.io.instances import border_labels
from nnunet_hrmedseg.plans.planner import nnUNetPlannerHRMedSeg
from nnunet_hrmedseg.plans.stock_planning import ExperimentPlanner, StockPlanning, check_description
from tests.users import ANNA, BEN, acting_as, share, shared_folder

__all__ = ["shared_folder"]

CHANNELS = {"0": "R", "1": "G", "2": "B"}
LABELS = {"background": 0, "cell": 1}


@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        {"background": 0, "whole": [1, 2], "core": 2},
        {**LABELS, "ignore": 2},
        {"a": "0"},
        {"background": 0, "11": 1, "12": 2},  # names of teeth
    ],
)
def test_descriptions_of_nnunet_are_accepted(labels):
    check_description({"channel_names": CHANNELS, "labels": labels})


@pytest.mark.parametrize(
    ("channels", "labels", "message"),
    [
        ({"R": 0, "G": 1, "B": 2}, LABELS, r"channel_names .* such as .*\"0\": \"R\".*, not {'R': 0"),
        (["R", "G", "B"], LABELS, "channel_names .* not \\['R'"),
        (CHANNELS, {"0": "background", "1": "cell"}, "labels .* nnU-Net v1 had them the other way round"),
        (CHANNELS, {"background": 0, "cell": None}, "labels .*, not {'background': 0, 'cell': None}"),
    ],
)
def test_inverted_descriptions_are_reported(channels, labels, message):
    with pytest.raises(PlanError, match=message):
        check_description({"channel_names": channels, "labels": labels})


@pytest.mark.parametrize("value", [1, "1", [1], ["1"]])
def test_objects_are_measured_for_all_forms_of_labels(tmp_path, value):
    mask = np.zeros((20, 30), np.uint8)
    mask[5:10, 4:24] = 1
    for folder, name in (("imagesTr", "a_0000.png"), ("labelsTr", "a.png")):
        (tmp_path / folder).mkdir()
        Image.fromarray(mask).save(tmp_path / folder / name)
    description = {"channel_names": {"0": "gray"}, "labels": {"background": "0", "cell": value}, "file_ending": ".png"}
    planner = SimpleNamespace(raw_dataset_folder=str(tmp_path), dataset_json=description)
    (cell,) = nnUNetPlannerHRMedSeg._thickness(planner, [(40, 60)], [0, 1, 2]).values()
    assert cell.pixels == {(40, 60): pytest.approx(10)} and cell.objects == 1


def test_borders_between_objects_are_not_measured(tmp_path):
    instances = np.zeros((40, 60), np.int32)
    instances[10:20, 4:24] = 1
    for folder, name, pixels in (
        ("imagesTr", "a_0000.png", instances.astype(np.uint8)),
        ("labelsTr", "a.png", border_labels(instances)),
    ):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / name)
    description = {
        "channel_names": {"0": "gray"},
        "labels": {"background": 0, "cell": 1, "border": 2},
        "instances": {"core": 1, "border": 2},
        "file_ending": ".png",
    }
    planner = SimpleNamespace(raw_dataset_folder=str(tmp_path), dataset_json=description)
    measured = nnUNetPlannerHRMedSeg._thickness(planner, [(40, 60)], [0, 1, 2])
    assert list(measured) == ["cell"]
    assert measured["cell"].pixels == {(40, 60): pytest.approx(8)}  # the core has 8 x 18 pixels


def _planning(monkeypatch, folder, plan):
    monkeypatch.setenv("nnUNet_preprocessed", str(folder))
    monkeypatch.setattr(ExperimentPlanner, "plan_experiment", plan)
    planner = object.__new__(StockPlanning)
    vars(planner).update(
        dataset_json={"channel_names": CHANNELS, "labels": LABELS}, dataset={}, plans={}, plans_identifier="plans"
    )
    planner.dataset_name = "Dataset001_Test"
    return planner


def test_plans_of_another_user_are_replaced(monkeypatch, shared_folder):
    folder = shared_folder / "Dataset001_Test"
    files = [folder / "plans.json", folder / "dataset.json"]

    def plan(self):
        for file in files:
            file.write_text("new")

    planner = _planning(monkeypatch, shared_folder, plan)
    with acting_as(ANNA):
        folder.mkdir()
        for file in files:
            file.write_text("old")
    share(folder)
    with acting_as(BEN):
        planner.plan_experiment()
    assert [file.read_text() for file in files] == ["new", "new"]

    share(folder, 0o2755)
    files[:] = [folder / "other.json"]
    with acting_as(BEN), pytest.raises(SetupError, match=f"other.json cannot be .* The folder .* user {ANNA}"):
        planner.plan_experiment()
