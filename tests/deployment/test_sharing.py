"""Sharing a trained model: its files, predictions and card."""

import json
import pickle
import pickletools
import zipfile
from copy import deepcopy

import numpy as np
import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_hrmedseg.deployment.sharing import share_model
from nnunet_hrmedseg.errors import CheckpointError, PlanError
from tests.deployment.trained_models import (
    CASES,
    DATASET,
    ENCODER,
    MODELS,
    hrmedseg,
    model_in,
    predict,
    stock,
    write_summary,
)
from tests.teachers.tiny_teachers import Payload


@pytest.mark.parametrize("kind", MODELS)
def test_predictions_of_a_shared_model_are_unchanged(trained, tmp_path, kind):
    folder = trained(kind)
    shared = share_model(model=folder, output=tmp_path / "shared").path
    shape = (1, 16, 32, 40) if kind == "segmaformer" else (3, 1, 50, 70)
    expected, found = predict(folder, shape), predict(model_in(shared), shape)
    assert expected.std() > 0
    assert np.array_equal(expected, found)


def test_zip_is_installed_by_nnunet(trained, tmp_path, monkeypatch):
    folder = trained()
    archive = share_model(model=folder, output=tmp_path / "model.zip").path
    (tmp_path / "installed").mkdir()
    from nnunetv2.model_sharing import model_import

    monkeypatch.setattr(model_import, "nnUNet_results", str(tmp_path / "installed"))
    model_import.install_model_from_zip_file(str(archive))
    installed = tmp_path / "installed" / DATASET / folder.name
    shape = (3, 1, 50, 70)
    assert np.array_equal(predict(folder, shape), predict(installed, shape))
    shared = model_in(share_model(model=folder, output=tmp_path / "shared").path)
    contents = [
        {file.relative_to(root): file.read_bytes() for file in root.rglob("*") if file.is_file()}
        for root in (installed, shared)
    ]
    assert contents[0] == contents[1]
    assert share_model(model=folder, output=tmp_path / "again.zip").path.read_bytes() == archive.read_bytes()


def test_plans_are_kept_except_for_paths(trained, tmp_path):
    folder = trained()
    plans, shared = (
        json.loads((at / "plans.json").read_text())
        for at in (folder, model_in(share_model(model=folder, output=tmp_path / "s").path))
    )
    expected = deepcopy(plans)
    configuration = expected["configurations"]["2d"]
    configuration["encoder_started_from"] = {k: v for k, v in ENCODER.items() if k != "file"}
    del configuration["encoder_weights"]
    assert shared == expected


@pytest.mark.parametrize(
    ("kind", "configuration", "canvas"), [("hrmedseg", "2d", "64 x 64"), ("segmaformer", "3d_fullres", "16 x 32 x 32")]
)
def test_canvas_that_was_edited_after_training_is_rejected(trained, tmp_path, kind, configuration, canvas):
    folder = trained(kind)
    file = folder / "plans.json"
    plans = json.loads(file.read_text())
    plans["configurations"][configuration]["patch_size"][0] = 48
    file.write_text(json.dumps(plans))
    with pytest.raises(PlanError, match=f"{canvas}, now 48 x ") as error:
        share_model(model=folder, output=tmp_path / "shared")
    assert str(file) in str(error.value) and not (tmp_path / "shared").exists()


def test_model_that_started_from_pretrained_weights(trained, tmp_path):
    folder = trained()
    file = folder / "plans.json"
    plans = json.loads(file.read_text())
    name = "HRMedSeg with 3 image channels (Dataset005_Other, nnUNetTrainerHRMedSeg)"
    record = {"file": "/data/somebody/fold_0/checkpoint_final.pth", "sha256": "cd" * 32, "name": name}
    plans["configurations"]["2d"]["encoder_started_from"] = record
    file.write_text(json.dumps(plans))
    shared = model_in(share_model(model=folder, output=tmp_path / "shared").path)
    expected = {"name": name, "sha256": "cd" * 32}
    assert json.loads((shared / "model_card.json").read_text())["encoder"] == expected
    assert json.loads((shared / "plans.json").read_text())["configurations"]["2d"]["encoder_started_from"] == expected


def test_card_describes_the_model(trained, tmp_path):
    folder = trained()
    shared = model_in(share_model(model=folder, output=tmp_path / "shared", license="CC BY 4.0").path)
    card = json.loads((shared / "model_card.json").read_text())
    plans = PlansManager(hrmedseg())
    network = nnUNetTrainer.build_network_architecture(
        plans, plans.get_configuration("2d"), 3, 3, enable_deep_supervision=False
    )
    assert card["parameters"] == sum(p.numel() for p in network.parameters())
    assert card["network"] == "nnunet_hrmedseg.architectures.HRMedSeg"
    assert (card["trainer"], card["plans"], card["configuration"]) == tuple(folder.name.split("__"))
    assert card["folds"] == ["0", "1"] and card["training_cases"] == 4 and card["canvas"] == [64, 64]
    assert card["labels"] == {"background": 0, "disc": 1, "square": 2}
    assert card["channels"] == {"0": "T0/x", "1": "T1/x", "2": "T2/x"}
    assert card["encoder"] == {"name": ENCODER["name"], "sha256": ENCODER["sha256"]}
    # one case in fold 0, three in fold 1
    assert card["cross_validation_dice"] == {"mean": 0.6875, "folds": {"0": 0.5, "1": 0.75}, "cases": 4}
    assert card["license"] == "CC BY 4.0" and "CC BY 4.0" in (shared / "LICENSE.txt").read_text()
    import hashlib

    listed = {name: hashlib.sha256((shared / name).read_bytes()).hexdigest() for name in card["files"]}
    assert listed == card["files"]
    there = {file.relative_to(shared).as_posix() for file in shared.rglob("*") if file.is_file()}
    assert there == {*listed, "model_card.json"}
    assert "-tr nnUNetTrainerHRMedSeg -p nnUNetPlans -c 2d -f 0 1" in (shared / "README.md").read_text()


def test_shared_weights_of_a_stock_model_are_counted_once(trained, tmp_path):
    folder = trained("stock")
    shared = model_in(share_model(model=folder, output=tmp_path / "shared").path)
    card = json.loads((shared / "model_card.json").read_text())
    plans = PlansManager(stock())
    network = nnUNetTrainer.build_network_architecture(
        plans, plans.get_configuration("2d"), 3, 3, enable_deep_supervision=False
    )
    assert card["parameters"] == sum(p.numel() for p in network.parameters())
    assert card["canvas"] is None and card["patch_size"] == [64, 64]
    file = shared / "fold_0" / "checkpoint_final.pth"
    stored = sum(member.file_size for member in zipfile.ZipFile(file).infolist() if "/data/" in member.filename)
    assert stored == 4 * card["parameters"]  # float32, each weight stored once


def test_folds_and_checkpoint_can_be_chosen(trained, tmp_path):
    folder = trained()
    (folder / "fold_1" / "checkpoint_final.pth").rename(folder / "fold_1" / "checkpoint_best.pth")
    assert [f.name for f in model_in(share_model(model=folder, output=tmp_path / "a").path).glob("fold_*")] == [
        "fold_0"
    ]
    shared = model_in(
        share_model(model=folder, output=tmp_path / "b", folds=[1], checkpoint="checkpoint_best.pth").path
    )
    assert (shared / "fold_1" / "checkpoint_final.pth").is_file()
    for wrong, kind, message in (
        ({"folds": [0, 3]}, CheckpointError, "fold 3; the folds that have one: 0"),
        ({"folds": ["all"]}, CheckpointError, "fold all"),
        ({"folds": []}, PlanError, "No folds"),
        ({"checkpoint": "checkpoint_x.pth"}, CheckpointError, "no checkpoint_x.pth of fold 0, 1, ... or all"),
        ({"checkpoint": "../fold_0/checkpoint_final.pth"}, PlanError, "without folders"),
    ):
        with pytest.raises(kind, match=message):
            share_model(model=folder, output=tmp_path / "c", **wrong)
    assert not (tmp_path / "c").exists()


def test_postprocessing_is_rewritten(trained, tmp_path):
    folder = trained()
    crossval = folder / "crossval_results_folds_0_1"
    write_summary(crossval / "summary.json", 0.7, CASES)
    content = {
        "input_folder": {"foreground_mean": {"Dice": 0.7}, "mean": {}},
        "postprocessed": {"foreground_mean": {"Dice": 0.8}, "mean": {}},
        "postprocessing_fns": ["remove_all_but_largest_component_from_segmentation"] * 2,
        "postprocessing_kwargs": [{"labels_or_regions": [1, [1, 2]]}, {"labels_or_regions": 2, "background_label": 0}],
    }
    (crossval / "postprocessing.json").write_text(json.dumps(content))
    (crossval / "postprocessing.pkl").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    shared = model_in(share_model(model=folder, output=tmp_path / "shared").path)
    written = (shared / crossval.name / "postprocessing.pkl").read_bytes()
    named = [argument for opcode, argument, _ in pickletools.genops(written) if "GLOBAL" in opcode.name]
    assert named == [None] and not (tmp_path / "executed").exists()
    functions, arguments = pickle.loads(written)
    assert arguments == [
        {"labels_or_regions": [1, (1, 2)], "background_label": 0},
        {"labels_or_regions": 2, "background_label": 0},
    ]
    segmentation = np.array([[2, 2, 2, 0, 2, 1]])
    for function, given in zip(functions, arguments, strict=True):
        segmentation = function(segmentation, **given)
    assert segmentation.tolist() == [[2, 2, 2, 0, 0, 0]]
    card = json.loads((shared / "model_card.json").read_text())
    assert card["cross_validation_dice"]["mean"] == 0.7

    content["postprocessing_fns"] = ["os.system"] * 2
    (crossval / "postprocessing.json").write_text(json.dumps(content))
    shared = model_in(share_model(model=folder, output=tmp_path / "other").path)
    assert not (shared / crossval.name / "postprocessing.pkl").exists()
    assert "left out" in json.loads((shared / "model_card.json").read_text())["postprocessing"]
