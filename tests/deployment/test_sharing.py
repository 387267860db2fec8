import json
import os
import pickle
import pickletools
import zipfile
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_hrmedseg.deployment.private_texts import PrivacyFilter, iter_strings
from nnunet_hrmedseg.deployment.sharing import share_model
from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.io.checkpoints import load_checkpoint
from nnunet_hrmedseg.plans.overrides import hrmedseg_plans
from nnunet_hrmedseg.plans.volumes import segmaformer_plans
from tests.plans.stock_plans import volume_plans
from tests.teachers.tiny_teachers import Payload, nnunet_checkpoint, nnunet_plans

DATASET = "Dataset007_Spots"
CASES = ["patient_0417", "patient_0822", "MR-77a", "12"]
ENCODER = {"file": "/data/somebody/encoders/sam.safetensors", "sha256": "ab" * 32, "name": "distilled from SAM ViT-B"}


def hrmedseg(network="HRMedSeg"):
    plans = hrmedseg_plans(nnunet_plans(), num_training_cases=4, network=network)
    configuration = plans["configurations"]["2d"]
    configuration["patch_size"] = [64, 64]
    tiny = {"embed_dim": 24, "depth": 3, "decoder_dim": 16, "decoder_mlp_dim": 16, "decoder_heads": 2}
    configuration["architecture"]["arch_kwargs"].update(tiny)
    configuration["encoder_weights"] = ENCODER["file"]
    return hrmedseg_plans(plans, num_training_cases=4)  # as training writes it: the data folder's name follows


def stock():
    plans = nnunet_plans(stages=4)
    plans["configurations"]["2d"]["patch_size"] = [64, 64]
    return plans


def segmaformer():
    plans = volume_plans()
    configuration = plans["configurations"]["3d_fullres"]
    configuration.update(patch_size=[16, 32, 32], normalization_schemes=["ZScoreNormalization"])
    configuration["use_mask_for_norm"] = [False]
    plans = segmaformer_plans(plans, "3d_fullres")
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arguments.update(embed_dims=[6, 12, 12, 12], decoder_dim=16, num_heads=2)
    return plans


MODELS = {
    "hrmedseg": ("nnUNetTrainerHRMedSeg", hrmedseg, "2d", 3),
    "herseg": ("nnUNetTrainerHERSeg", lambda: hrmedseg("HERSeg"), "2d", 3),
    "stock": ("nnUNetTrainer", stock, "2d", 3),
    "segmaformer": ("nnUNetTrainerSegMaFormer", segmaformer, "3d_fullres", 1),
}


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Returns a function that writes a trained model with all that nnU-Net leaves in its folder, and private things."""

    def write(kind="hrmedseg", folds=(0, 1), **dataset_more):
        trainer, plans, configuration, channels = MODELS[kind]
        plans = plans()
        plans["configurations"][configuration]["encoder_started_from"] = ENCODER
        dataset = {
            "channel_names": {str(channel): f"T{channel}/x" for channel in range(channels)},
            "labels": {"background": 0, "disc": 1, "square": 2},
            "numTraining": 4,
            "file_ending": ".png" if channels == 3 else ".nii.gz",
            "licence": "CC BY 4.0",
            "reference": "https://example.org/data/set",
            "description": f"drawn from {CASES[0]}",
            "training": [{"image": f"./imagesTr/{case}_0000.png"} for case in CASES],
            "dataset": {case: {"images": [f"/data/somebody/{case}.png"], "label": "x"} for case in CASES},
            "converted_by": "Somebody",
            **dataset_more,
        }
        folder = tmp_path / "results" / DATASET / f"{trainer}__nnUNetPlans__{configuration}"
        manager = PlansManager(plans)
        torch.manual_seed(0)
        for fold in folds:
            network = nnUNetTrainer.build_network_architecture(
                manager, manager.get_configuration(configuration), channels, 3, enable_deep_supervision=False
            )
            optimizer = torch.optim.Adam(network.parameters())
            of_training = {"plans": plans, "configuration": configuration, "fold": fold, "dataset_json": dataset}
            checkpoint = nnunet_checkpoint(network, optimizer, of_training, trainer)
            validation = folder / f"fold_{fold}" / "validation"
            validation.mkdir(parents=True)
            torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
            write_summary(validation / "summary.json", 0.5 + 0.25 * (fold == 1), CASES[:3] if fold == 1 else CASES[3:])
            (folder / f"fold_{fold}" / "training_log_2026_1_1.txt").write_text("/data/somebody")
            (folder / f"fold_{fold}" / "debug.json").write_text('{"hostname": "somewhere"}')
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(dataset))
        (folder / "dataset_fingerprint.json").write_text(json.dumps({"spacings": [[1, 1]] * 4}))
        preprocessed = tmp_path / "preprocessed" / DATASET
        preprocessed.mkdir(parents=True, exist_ok=True)
        (preprocessed / "splits_final.json").write_text(json.dumps([{"train": CASES[:2], "val": CASES[2:]}]))
        monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
        return folder

    return write


def write_summary(file, dice, cases):
    file.parent.mkdir(parents=True, exist_ok=True)
    metrics = {"1": {"Dice": dice}, "2": {"Dice": float("nan")}}
    of_cases = [
        {"prediction_file": f"/data/somebody/{c}.png", "reference_file": f"/x/{c}.png", "metrics": metrics}
        for c in cases
    ]
    content = {"foreground_mean": {"Dice": dice}, "mean": metrics, "metric_per_case": of_cases}
    file.write_text(json.dumps(content))


def model_in(output):
    [folder] = output.glob("Dataset*/*__*__*")
    return folder


def predict(folder, shape, folds=(0, 1)):
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), folds)
    image = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    properties = {"spacing": [999.0, 1.0, 1.0] if shape[1] == 1 else [3.0, 1.0, 1.0]}
    _, probabilities = predictor.predict_single_npy_array(image, properties, save_or_return_probabilities=True)
    return probabilities


@pytest.mark.parametrize("kind", MODELS)
def test_predictions_are_the_originals(trained, tmp_path, kind):
    folder = trained(kind)
    shared = share_model(model=folder, output=tmp_path / "shared").path
    shape = (1, 16, 32, 40) if kind == "segmaformer" else (3, 1, 50, 70)
    expected, found = predict(folder, shape), predict(model_in(shared), shape)
    assert expected.std() > 0
    assert np.array_equal(expected, found)


def test_a_zip_is_installed_by_nnunet(trained, tmp_path, monkeypatch):
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


def test_nothing_private_is_in_any_file(trained, tmp_path):
    shared = model_in(share_model(model=trained(), output=tmp_path / "shared").path)
    private = [*CASES[:3], "somebody", "Somebody", "somewhere", str(tmp_path), "imagesTr", "ext_secret"]
    for file in shared.rglob("*"):
        assert not [name for name in private if name in str(file.relative_to(shared))]
        if file.suffix == ".pth":
            content = load_checkpoint(file)
            assert content.keys() == {
                "network_weights", "trainer_name", "init_args", "inference_allowed_mirroring_axes"
            }  # fmt: skip
            assert content["init_args"] == {"configuration": "2d"}
            texts = [*iter_strings(content)]
        else:
            texts = [file.read_text()] if file.is_file() else []
        assert not [name for name in private for text in texts if name in text], file
    there = {file.relative_to(shared).as_posix() for file in shared.rglob("*") if file.is_file()}
    of_folds = {f"fold_{n}/{name}" for n in (0, 1) for name in ("checkpoint_final.pth", "validation/summary.json")}
    assert there == {"plans.json", "dataset.json", "model_card.json", "README.md", "LICENSE.txt"} | of_folds


def test_the_plans_keep_all_but_the_paths(trained, tmp_path):
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
def test_a_canvas_that_was_edited_after_training_is_refused(trained, tmp_path, kind, configuration, canvas):
    folder = trained(kind)
    file = folder / "plans.json"
    plans = json.loads(file.read_text())
    plans["configurations"][configuration]["patch_size"][0] = 48
    file.write_text(json.dumps(plans))
    with pytest.raises(HRMedSegError, match=f"{canvas}, now 48 x ") as error:
        share_model(model=folder, output=tmp_path / "shared")
    assert str(file) in str(error.value) and not (tmp_path / "shared").exists()


def test_a_model_that_started_from_a_whole_network(trained, tmp_path):
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


def test_the_card_says_what_it_is(trained, tmp_path):
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


def test_a_stock_model_counts_weights_that_go_by_two_names_once(trained, tmp_path):
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
    assert stored == 4 * card["parameters"]  # float32, each once


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
    for wrong, said in (
        ({"folds": [0, 3]}, "fold 3; the folds that have one: 0"),
        ({"folds": ["all"]}, "fold all"),
        ({"folds": []}, "No folds"),
        ({"checkpoint": "checkpoint_x.pth"}, "no checkpoint_x.pth of fold 0, 1, ... or all"),
        ({"checkpoint": "../fold_0/checkpoint_final.pth"}, "without folders"),
    ):
        with pytest.raises(HRMedSegError, match=said):
            share_model(model=folder, output=tmp_path / "c", **wrong)
    assert not (tmp_path / "c").exists()


def test_postprocessing_is_written_anew(trained, tmp_path):
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


def test_a_hostile_checkpoint_is_not_opened(trained, tmp_path):
    folder = trained()
    torch.save(Payload(tmp_path / "executed"), folder / "fold_1" / "checkpoint_final.pth")
    with pytest.raises(HRMedSegError, match=r"fold_1/checkpoint_final\.pth was not loaded: it holds"):
        share_model(model=folder, output=tmp_path / "shared")
    (folder / "fold_1" / "checkpoint_final.pth").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(HRMedSegError, match=r"fold_1/checkpoint_final\.pth is damaged"):
        share_model(model=folder, output=tmp_path / "shared")
    torch.save({"network_weights": {}}, folder / "fold_1" / "checkpoint_final.pth")
    with pytest.raises(HRMedSegError, match="is not a checkpoint of nnU-Net v2"):
        share_model(model=folder, output=tmp_path / "shared")
    assert not (tmp_path / "executed").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["preprocessed", "results"]


@pytest.mark.parametrize(
    "more, said",
    [
        ({"labels": {"background": 0, "see /data/somebody/notes": 1, "b": 2}}, "dataset.json would tell a path"),
        ({"channel_names": {"0": "patient_0417.png", "1": "b", "2": "c"}}, "dataset.json would tell the name"),
    ],
)
def test_what_must_stay_and_is_private_stops_it(trained, tmp_path, more, said):
    with pytest.raises(HRMedSegError, match=f"Nothing was shared: {said}"):
        share_model(model=trained(**more), output=tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


def test_a_license_that_is_a_path_stops_it(trained, tmp_path):
    with pytest.raises(HRMedSegError, match="LICENSE.txt would tell a path"):
        share_model(model=trained(), output=tmp_path / "shared", license="/home/me/license.txt")


def test_what_is_there_is_not_touched(trained, tmp_path):
    folder = trained()
    output, archive = tmp_path / "shared", tmp_path / "model.zip"
    for place in (output, archive):
        share_model(model=folder, output=place, folds=[0])
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(HRMedSegError, match="exists already"):
            share_model(model=folder, output=place)
        assert sorted(tmp_path.rglob("*")) == before
        share_model(model=folder, output=place, overwrite=True)
    assert len([*model_in(output).glob("fold_*")]) == 2
    assert len([name for name in zipfile.ZipFile(archive).namelist() if name.endswith(".pth")]) == 2
    with pytest.raises(HRMedSegError, match="not what was shared before"):
        share_model(model=folder, output=tmp_path / "preprocessed", overwrite=True)
    for around in (folder / "inside", folder, folder.parent, tmp_path):
        with pytest.raises(HRMedSegError, match="is in the model's folder .*, or around it"):
            share_model(model=folder, output=around, overwrite=True)
    assert (tmp_path / "preprocessed" / DATASET / "splits_final.json").is_file()


def _zipped(file, **contents):
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in contents.items():
            archive.writestr(name, text)


def test_zips_of_others_are_not_overwritten(trained, tmp_path):
    folder = trained()
    archive, theirs = share_model(model=folder, output=tmp_path / "model.zip", folds=[0]).path, tmp_path / "theirs.zip"
    with zipfile.ZipFile(archive) as shared:
        contents = {name: shared.read(name) for name in shared.namelist()}
    [card] = [name for name in contents if name.endswith("model_card.json")]
    others = {
        "no zip": lambda: theirs.write_bytes(b"a thesis"),
        "empty": lambda: theirs.write_bytes(b""),
        "half": lambda: theirs.write_bytes(archive.read_bytes()[:-100]),
        "another's": lambda: _zipped(theirs, **{"thesis.tex": "a"}),
        "without card": lambda: _zipped(theirs, **{name: text for name, text in contents.items() if name != card}),
        "with more": lambda: _zipped(theirs, **contents, **{"thesis.tex": "a"}),
        "a card elsewhere": lambda: _zipped(theirs, **{f"x/{card}": contents[card]}),
        "a card of others": lambda: _zipped(theirs, **{card: "[]"}),
    }
    for what, write in others.items():
        write()
        before = theirs.read_bytes()
        with pytest.raises(HRMedSegError, match="not what was shared before, or holds more"):
            share_model(model=folder, output=theirs, overwrite=True)
        assert theirs.read_bytes() == before, what
    _zipped(theirs, **contents)
    share_model(model=folder, output=theirs, folds=[0], overwrite=True)
    assert theirs.read_bytes() == archive.read_bytes()


@pytest.mark.parametrize("where", ["fold_0", ".", "..", "../.."])
def test_a_folder_with_more_than_was_shared_is_not_overwritten(trained, tmp_path, where):
    """Unpacked into nnUNet_results, say, and trained on."""
    folder = trained()
    shared = share_model(model=folder, output=tmp_path / "shared", folds=[0]).path
    more = model_in(shared) / where / "checkpoint_latest.pth"
    more.write_bytes(b"days of training")
    with pytest.raises(HRMedSegError, match="not what was shared before, or holds more"):
        share_model(model=folder, output=shared, overwrite=True)
    assert more.read_bytes() == b"days of training"


def test_a_place_below_a_file_is_said_in_words(trained, tmp_path):
    folder = trained(folds=[0])
    (tmp_path / "thesis.tex").touch()
    for place in ("model.zip", "folder"):
        with pytest.raises(HRMedSegError, match="thesis.tex is a file"):
            share_model(model=folder, output=tmp_path / "thesis.tex" / place)


def test_a_failure_leaves_nothing(trained, tmp_path, monkeypatch):
    folder = trained()
    share_model(model=folder, output=tmp_path / "shared", folds=[0])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(HRMedSegError, match="could not be written .No space"):
        share_model(model=folder, output=tmp_path / "shared", overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_folders_that_are_no_models_are_named(trained, tmp_path):
    folder = trained()
    for wrong, said in (
        (tmp_path / "gone", "There is no folder .*gone"),
        (tmp_path / "results", "is not where nnU-Net keeps a trained model"),
    ):
        with pytest.raises(HRMedSegError, match=said):
            share_model(model=wrong, output=tmp_path / "shared")
    plans = folder / "plans.json"
    for content, said in (("[" * 10**5, "nested too deeply"), ("[]", "holds a list"), ("{}", "does not describe")):
        plans.write_text(content)
        with pytest.raises(HRMedSegError, match=rf"plans\.json.*{said}"):
            share_model(model=folder, output=tmp_path / "shared")
    os.remove(folder / "dataset.json")
    plans.write_text("{}")
    with pytest.raises(HRMedSegError, match=r"dataset\.json"):
        share_model(model=folder, output=tmp_path / "shared")


def test_the_test_data_is_private_indeed(trained):
    folder = Path(trained())
    private = PrivacyFilter(CASES)
    content = load_checkpoint(folder / "fold_0" / "checkpoint_final.pth")
    assert sum(private.find(text) is not None for text in iter_strings(content)) > 10
