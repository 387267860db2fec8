"""nnU-Net models that cannot be teachers: hostile, unsupported and damaged folders."""

import json

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_hrmedseg.errors import CheckpointError, DataError, PlanError
from nnunet_hrmedseg.teachers.nnunet import NNUNetTeacher
from tests.plans.stock_plans import volume_plans
from tests.teachers.tiny_teachers import Payload, write_nnunet

CANVAS = (64, 64)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "nnUNetTrainer__nnUNetPlans__2d"


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_the_checkpoint_is_executed(folder, tmp_path, zipped):
    made = tmp_path / "made_by_the_payload"
    write_nnunet(folder)
    file = folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    torch.save({**content, "logging": Payload(made)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="was not loaded.*open.*execute"):
        NNUNetTeacher.load(folder, canvas=CANVAS)
    assert not made.exists()
    torch.load(file, weights_only=False)
    assert made.exists()  # the payload works


def test_functions_named_in_the_plans_are_not_called(folder, tmp_path):
    write_nnunet(folder)
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["2d"]["architecture"]["network_class_name"] = "subprocess.Popen"
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(PlanError, match="subprocess.Popen in plans.json is not a network"):
        NNUNetTeacher.load(folder, canvas=CANVAS)


@pytest.mark.parametrize(
    "configuration, message", [("3d_fullres", "3D model.*32, 160, 160"), ("2d_cascade", "second stage of a cascade")]
)
def test_3d_models_and_cascades_are_rejected(folder, configuration, message):
    write_nnunet(folder, configuration=configuration)
    (folder / "plans.json").write_text(json.dumps(volume_plans()))
    with pytest.raises(CheckpointError, match=message):
        NNUNetTeacher.load(folder, canvas=CANVAS)


@pytest.mark.parametrize(
    "written, message",
    [
        ({"channels": 2}, "images of 2 channels"),
        ({"channels": 4}, "images of 4 channels"),
        ({"scheme": "CTNormalization"}, "cannot be normalized by CTNormalization"),
        ({"trainer": "nnUNetTrainerOfNobody"}, "trained with nnUNetTrainerOfNobody"),
        ({"configuration": "2d_big"}, "'2d_big'"),
        ({"extra": {"network_weights": {"a": torch.zeros(1)}}}, "does not fit the network.*same training"),
        ({"extra": {"init_args": {}}}, "'configuration' is missing"),
    ],
)
def test_unsupported_models_are_rejected(folder, written, message):
    write_nnunet(folder, **written)
    with pytest.raises(CheckpointError, match=message) as raised:
        NNUNetTeacher.load(folder, canvas=CANVAS)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize("target", ["features", "logits"])
def test_network_without_encoder(folder, target, monkeypatch):
    write_nnunet(folder)
    build = nnUNetTrainer.build_network_architecture

    class NoEncoder(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.hidden = [network]

        def load_state_dict(self, weights):
            self.hidden[0].load_state_dict(weights)

        def forward(self, x):
            return self.hidden[0](x)

    monkeypatch.setattr(
        nnUNetTrainer,
        "build_network_architecture",
        staticmethod(
            lambda plans_manager, configuration, inputs, outputs, enable_deep_supervision: NoEncoder(
                build(plans_manager, configuration, inputs, outputs, enable_deep_supervision)
            )
        ),
    )
    if target == "logits":
        assert NNUNetTeacher.load(folder, canvas=CANVAS, target=target).channels == 48
    else:
        with pytest.raises(CheckpointError, match="NoEncoder has no part named encoder.*logits"):
            NNUNetTeacher.load(folder, canvas=CANVAS)


def test_network_with_a_fixed_input_size_is_reported(folder, monkeypatch):
    write_nnunet(folder)

    def refuse(self, x):
        raise ValueError("Input height doesn't match model")

    monkeypatch.setattr("dynamic_network_architectures.architectures.unet.PlainConvUNet.forward", refuse)
    with pytest.raises(CheckpointError, match="cannot be run on an image of 64 x 64 pixels.*doesn't match"):
        NNUNetTeacher.load(folder, canvas=CANVAS, target="logits")


def _truncated(folder):
    file = folder / "fold_0" / "checkpoint_final.pth"
    file.write_bytes(file.read_bytes()[:3000])


def _with_dataset_json(text):
    return lambda folder: (folder / "dataset.json").write_text(text)


@pytest.mark.parametrize(
    "damage, kind, message",
    [
        (_truncated, CheckpointError, "checkpoint_final.pth is damaged"),
        (lambda folder: (folder / "plans.json").unlink(), DataError, "plans.json of a trained model's folder"),
        (_with_dataset_json("{"), DataError, "dataset.json of a trained .*: Expecting"),
        (_with_dataset_json("[]"), DataError, "dataset.json of a trained .* it holds a list"),
        (_with_dataset_json("{}"), CheckpointError, "do not describe the configuration '2d'"),
        (lambda folder: (folder / "fold_0").rename(folder / "fold0"), CheckpointError, "The folds there: none"),
    ],
)
def test_damaged_folders_are_reported(folder, damage, kind, message):
    write_nnunet(folder)
    damage(folder)
    with pytest.raises(kind, match=message):
        NNUNetTeacher.load(folder, canvas=CANVAS)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"target": "masks"}, "one of features, logits, not 'masks'"),
        ({"scale": 0}, "positive number"),
        ({"scale": "half"}, "positive number"),
        ({"scale": 0.1}, "scale 0.1 leaves less than 16 pixels"),
        ({"color": 1}, "does not know color. Its options: fold, checkpoint, target, scale"),
        ({"canvas": (100, 64)}, "multiples of 16"),
    ],
)
def test_invalid_options_are_rejected(folder, options, message):
    write_nnunet(folder)
    with pytest.raises(PlanError, match=message):
        NNUNetTeacher.load(folder, **{"canvas": CANVAS, **options})
