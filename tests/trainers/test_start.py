"""The start of a training, and the conditions for its continuation and validation, as in nnU-Net's commands."""

import json
from pathlib import Path

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from safetensors.torch import save_file
from torch import nn

from nnunet_hrmedseg.errors import CheckpointError, PlanError
from nnunet_hrmedseg.io.files import file_sha256
from nnunet_hrmedseg.nnunet_versions import build_network
from nnunet_hrmedseg.plans.overrides import hrmedseg_plans
from nnunet_hrmedseg.trainers.hrmedseg import nnUNetTrainerHERSeg, nnUNetTrainerHRMedSeg
from nnunet_hrmedseg.trainers.start import checked_network
from tests.nnunet_releases import since_nnunet
from tests.plans.stock_plans import stock_plans
from tests.test_documentation import ROOT, blocks
from tests.trainers.conftest import LABELS

CPU = torch.device("cpu")
FIRST = "encoder.patch_embedding.proj.weight"
TINY = {"depth": 1, "embed_dim": 16, "channel_interactive_layers": 1, "decoder_dim": 32, "decoder_depth": 1}


def _plans(canvas=(32, 48), network="HRMedSeg", encoder="none", name="nnUNetPlans", **arguments):
    plans = {**hrmedseg_plans(stock_plans(), num_training_cases=5, network=network), "plans_name": name}
    configuration = plans["configurations"]["2d"]
    configuration.update(patch_size=list(canvas), encoder_weights=encoder)
    configuration["architecture"]["arch_kwargs"].update(TINY, **arguments)
    return {**plans, "continue_training": False}


def _trainer(description, cls=nnUNetTrainerHRMedSeg, fold=0, **plans):
    trainer = cls(_plans(network=cls.network_name, **plans), "2d", fold, description, CPU)
    trainer.num_iterations_per_epoch = trainer.num_val_iterations_per_epoch = 1
    return trainer


def _trained(description, name="checkpoint_final.pth", **arguments):
    """Start a training and return its checkpoint."""
    trainer = _trainer(description, **arguments)
    trainer.on_train_start()
    file = Path(trainer.output_folder, name)
    trainer.save_checkpoint(str(file))
    trainer.fold_lock.release()  # as at the end of its process
    return file


def _data_folders(tmp_path):
    return sorted(path.name for path in (tmp_path / "nnUNet_preprocessed" / "Dataset001_Test").glob("HRMedSeg_*x*"))


# ---- the plans -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": "4"}, '"batch_size" of configuration .2d. is "4"'),
        ({"normalization_schemes": ["ZScoreNormalization"]}, "has 1 entry, but dataset.json lists 3 channels"),
        ({"patch_size": None}, '"patch_size" of configuration .2d. is null'),
    ],
)
def test_invalid_plans_are_rejected_before_writing(dataset, tmp_path, change, words):
    plans = _plans()
    plans["configurations"]["2d"].update(change)
    with pytest.raises(PlanError, match=words):
        nnUNetTrainerHRMedSeg(plans, "2d", 0, dataset(LABELS), CPU)
    assert not list((tmp_path / "nnUNet_results").iterdir()) and not _data_folders(tmp_path)


def test_plans_with_slices_of_one_line_are_rejected(dataset):
    plans = {**_plans(), "original_median_shape_after_transp": [128, 116, 1]}
    with pytest.raises(PlanError, match="128 slices of 116 x 1 pixels"):
        nnUNetTrainerHRMedSeg(plans, "2d", 0, dataset(LABELS), CPU)


def test_incompatible_arguments_are_reported_before_preprocessing(dataset, tmp_path):
    trainer = _trainer(dataset(LABELS), embed_dim=18)
    words = "cannot be built: embed_dim must be a positive multiple of 4, got 18. .*Dataset001_Test/nnUNetPlans.json"
    with pytest.raises(PlanError, match=words):
        trainer.on_train_start()
    assert not _data_folders(tmp_path)


# ---- a canvas that was edited after a training -----------------------------------------------------------------------


CANVASES = r"canvas \(patch_size\) 32 x 48, now 64 x 64"


@pytest.mark.parametrize(("continued", "validated"), [(True, False), (False, True)])
def test_edited_canvas_is_not_continued_or_validated_on(dataset, tmp_path, continued, validated):
    description = dataset(LABELS)
    file = _trained(description)
    saved = (file.parent.parent / "plans.json").read_bytes()
    before = _data_folders(tmp_path)
    trainer = _trainer(description, canvas=(64, 64))
    with pytest.raises(PlanError, match=CANVASES):
        maybe_load_checkpoint(trainer, continued, validated)
    assert _data_folders(tmp_path) == before and (file.parent.parent / "plans.json").read_bytes() == saved


def test_another_fold_is_not_trained_on_an_edited_canvas(dataset, tmp_path):
    description = dataset(LABELS)
    file = _trained(description)
    saved = (file.parent.parent / "plans.json").read_bytes()
    with pytest.raises(PlanError, match=rf"^fold_0 of .*{CANVASES}"):
        _trainer(description, fold=1, canvas=(64, 64)).on_train_start()
    assert len(_data_folders(tmp_path)) == 2 and (file.parent.parent / "plans.json").read_bytes() == saved  # and a lock
    _trainer(description, fold=1).on_train_start()


def test_canvas_of_another_configuration_may_differ(dataset):
    description = dataset(LABELS)
    file = _trained(description)
    plans = _plans()
    plans["configurations"]["2d_64"] = {"inherits_from": "2d", "patch_size": [64, 64]}
    trainer = nnUNetTrainerHRMedSeg(plans, "2d_64", 0, description, CPU)
    maybe_load_checkpoint(trainer, False, False, str(file))  # from the weights for the other canvas
    trainer.on_train_start()
    assert trainer.configuration_manager.patch_size == [64, 64]
    assert trainer.encoder_record["sha256"] == file_sha256(file)


def test_training_continues_with_another_batch_size(dataset):
    description = dataset(LABELS)
    _trained(description)
    plans = _plans()
    plans["configurations"]["2d"]["batch_size"] = 3
    trainer = nnUNetTrainerHRMedSeg(plans, "2d", 0, description, CPU)
    maybe_load_checkpoint(trainer, True, False)
    assert trainer.current_epoch == 1


@since_nnunet("2.7", "the trainer sees the plans that prediction builds its network from")
def test_prediction_rejects_an_edited_canvas(dataset):
    trainer = _trainer(dataset(LABELS))
    manager = trainer.plans_manager
    assert build_network(type(trainer), manager, manager.get_configuration("2d"), 3, 3, False)
    manager.plans["configurations"]["2d"]["patch_size"] = [64, 64]
    manager.get_configuration.cache_clear()
    with pytest.raises(PlanError, match="trained on a canvas of 32 x 48, but patch_size in its plans.json is 64 x 64"):
        build_network(type(trainer), manager, manager.get_configuration("2d"), 3, 3, False)


# ---- -pretrained_weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["none", "bundled"])
def test_pretrained_weights_are_recorded(dataset, tmp_path, encoder):
    """The encoder, which does not match this network, is not read."""
    description = dataset(LABELS)
    file = _trained(description, name="checkpoint_latest.pth")
    trainer = _trainer(description, encoder=encoder, name="Other")
    maybe_load_checkpoint(trainer, False, False, str(file))
    trainer.on_train_start()
    expected = {
        "file": str(file),
        "sha256": file_sha256(file),
        "name": "HRMedSeg with 3 image channels (Dataset001_Test, nnUNetTrainerHRMedSeg)",
    }
    assert trainer.encoder_record == expected
    saved = json.loads(Path(trainer.output_folder_base, "plans.json").read_text())
    assert saved["configurations"]["2d"]["encoder_started_from"] == expected
    checkpoint = Path(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(str(checkpoint))
    again = _trainer(description, name="Other")
    again.load_checkpoint(str(checkpoint))
    assert again.encoder_record == expected


@pytest.mark.parametrize(("continued", "validated"), [(True, False), (False, True)])
def test_pretrained_weights_count_only_for_a_new_training(dataset, continued, validated):
    description = dataset(LABELS)
    _trained(description)
    trainer = _trainer(description)
    if continued:  # nnU-Net uses one or the other
        with pytest.raises(RuntimeError, match="Cannot both"):
            maybe_load_checkpoint(trainer, True, False, "elsewhere.pth")
        return
    maybe_load_checkpoint(trainer, False, True, "elsewhere.pth")
    assert trainer.encoder_record == {"file": "none"}


def _gray(description):
    return {**description, "channel_names": {"0": "gray"}}


def _start_from(file, description, cls=nnUNetTrainerHRMedSeg, **plans):
    maybe_load_checkpoint(_trainer(description, cls, name="Other", **plans), False, False, str(file))


def test_weights_of_another_network_are_rejected(dataset, tmp_path):
    description = dataset(LABELS)
    file = _trained(description)
    before = _data_folders(tmp_path)
    words = (
        r"does not fit: it is of HRMedSeg with 3 image channels \(Dataset001_Test, nnUNetTrainerHRMedSeg\), and this "
        r"training is of HERSeg with 3 image channels\. .*neck\..*HRMEDSEG_ENCODER_WEIGHTS"
    )
    with pytest.raises(CheckpointError, match=words) as error:
        _start_from(file, description, nnUNetTrainerHERSeg, canvas=(64, 64))
    assert "tensor" not in str(error.value) and len(str(error.value)) < 800
    assert _data_folders(tmp_path) == before


def test_weights_for_other_channels_are_rejected(dataset):
    description = dataset(LABELS)
    file = _trained(description)
    plans = _plans(name="Other")
    plans["configurations"]["2d"].update(normalization_schemes=["ZScoreNormalization"], use_mask_for_norm=[False])
    trainer = nnUNetTrainerHRMedSeg(plans, "2d", 0, _gray(description), CPU)
    words = r"HRMedSeg with 1 image channel\..* \(16 x 3 x 16 x 16 in the file, 16 x 1 x 16 x 16 here\)"
    with pytest.raises(CheckpointError, match=words):
        maybe_load_checkpoint(trainer, False, False, str(file))


def test_weights_of_another_width_are_rejected(dataset):
    description = dataset(LABELS)
    with pytest.raises(CheckpointError, match="same arch_kwargs"):
        _start_from(_trained(description), description, embed_dim=24)


@pytest.mark.parametrize("content", ["none", "text", "safetensors", "weights alone", "list"])
def test_files_that_are_not_checkpoints_are_rejected(dataset, tmp_path, content):
    file = tmp_path / "weights.pth"
    {
        "none": lambda: None,
        "text": lambda: file.write_text("<html>"),
        "safetensors": lambda: save_file({"a": torch.zeros(2)}, file),
        "weights alone": lambda: torch.save({"a": torch.zeros(2)}, file),
        "list": lambda: torch.save([1], file),
    }[content]()
    words = "does not exist" if content == "none" else "is not a checkpoint of nnU-Net v2.*HRMEDSEG_ENCODER_WEIGHTS"
    with pytest.raises(CheckpointError, match=f"-pretrained_weights .*weights.pth {words}"):
        _start_from(file, dataset(LABELS))
    assert not _data_folders(tmp_path)


@pytest.mark.parametrize("channels", [1, 3])
def test_script_in_the_docs_extracts_the_encoder(dataset, monkeypatch, channels):
    """From HRMedSeg with any channels to HERSeg on RGB: a grayscale image saved as RGB has the same features."""
    (script,) = [
        block
        for block in blocks(ROOT / "docs" / "how-to" / "use-another-encoder.md", "python")
        if "write_encoder" in block
    ]
    description = dataset(LABELS)
    plans = _plans(name="Other")
    if channels == 1:
        description = _gray(description)
        plans["configurations"]["2d"].update(normalization_schemes=["ZScoreNormalization"], use_mask_for_norm=[False])
    trained = nnUNetTrainerHRMedSeg(plans, "2d", 0, description, CPU)
    trained.network = checked_network(trained)
    trained.optimizer = torch.optim.Adam(trained.network.parameters())
    file = Path(trained.output_folder, "checkpoint_final.pth")
    trained.save_checkpoint(str(file))
    Path(trained.output_folder_base, "plans.json").write_text(json.dumps(trained.plans_manager.plans))
    monkeypatch.chdir(trained.output_folder_base)
    exec(script, {})

    description["channel_names"] = {"0": "R", "1": "G", "2": "B"}
    encoder = Path(trained.output_folder_base, "my_encoder.safetensors")
    trainer = _trainer(description, nnUNetTrainerHERSeg, encoder=str(encoder))
    trainer.on_train_start()
    assert trainer.encoder_record["name"] == "encoder of my model"
    image = torch.randn(1, 1, 32, 48).expand(1, 3, 32, 48)
    with torch.no_grad():
        expected = trained.network.eval().encoder(image[:, :channels])
        assert torch.allclose(trainer.network.eval().encoder(image), expected, atol=1e-5)


# ---- a trainer with another network ----------------------------------------------------------------------------------


class Own(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.layer = nn.Conv2d(channels, classes, 3, padding=1)

    def forward(self, image):
        return self.layer(image)


class TrainerOfOwn(nnUNetTrainerHRMedSeg):
    @staticmethod
    def build_network_architecture(
        plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision=True
    ):
        return Own(num_input_channels, num_output_channels)


class TrainerOfOwnScratch(TrainerOfOwn):
    encoder_weights = "none"


@since_nnunet("2.7", "networks are built from the plans")
def test_network_without_lgvit_is_reported(dataset, tmp_path):
    plans = _plans(encoder="bundled")
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"] = {}  # matches the bundled encoder
    description = dataset(LABELS)
    words = '^Own, the network of this trainer, does not have the encoder of HRMedSeg.*encoder_weights = "none"'
    with pytest.raises(CheckpointError, match=words):
        TrainerOfOwn(plans, "2d", 0, description, CPU).on_train_start()
    assert not _data_folders(tmp_path)


@since_nnunet("2.7", "networks are built from the plans")
def test_network_without_lgvit_trains_as_advised(dataset):
    trainer = _trainer(dataset(LABELS), TrainerOfOwnScratch)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    before = trainer.network.layer.weight.detach().clone()
    trainer.train_step(next(trainer.dataloader_train))
    trainer.progress.close()
    assert not torch.equal(trainer.network.layer.weight, before)
