"""nnU-Net models as teachers, compared with nnU-Net's loading and preprocessing."""

import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch.nn import functional as F

from nnunet_hrmedseg.architectures import HRMedSeg
from nnunet_hrmedseg.errors import CheckpointError
from nnunet_hrmedseg.io.checkpoints import load_checkpoint
from nnunet_hrmedseg.teachers.nnunet import NNUNetTeacher
from nnunet_hrmedseg.teachers.nnunet_normalization import normalize_images
from tests.teachers.tiny_teachers import ARCHITECTURES, nnunet_plans, write_nnunet

CPU = torch.device("cpu")
CANVAS = (64, 64)
CLOSE = {"atol": 1e-4, "rtol": 1e-4}

# the largest stride is 2 ** (stages - 1): 32 for the U-Net of 6 stages written here
UNETS = ["PlainConvUNet", "ResidualEncoderUNet"]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "nnUNetTrainer__nnUNetPlans__2d"


def _pictures(height, width, *, black_border=False):
    """Return 8-bit pictures (B, 3, H, W), as nnU-Net reads them: float32 in 0..255."""
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (2, 3, height, width)).astype(np.float32)
    if black_border:
        pictures[0, :, :9] = pictures[0, :, :, -5:] = 0
        pictures[1, :, -7:] = pictures[1, :, :, :3] = 0
        pictures[:, :, 20:24, 20:24] = 0  # a hole
    return pictures


def _images(pictures):
    return torch.from_numpy(pictures) / 255


def _preprocessed(picture, plans, dataset):
    """Apply nnU-Net's preprocessing to (C, H, W). Return the image without black borders, and the cropped box."""
    manager = PlansManager(plans)
    properties = {"spacing": [999, 1, 1]}
    data, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        picture[:, None], None, properties, manager, manager.get_configuration("2d"), dataset
    )
    box = tuple(slice(*side) for side in properties["bbox_used_for_cropping"][1:])
    return torch.as_tensor(data[:, 0]), box


def _reference(folder):
    """Return the network as loaded by nnU-Net's prediction, and a function that prepares its input from pictures."""
    predictor = nnUNetPredictor(device=CPU)
    predictor.initialize_from_trained_model_folder(str(folder), use_folds=(0,))
    plans = json.loads((folder / "plans.json").read_text())

    def prepare(pictures):
        if len(predictor.dataset_json["channel_names"]) == 1:
            pictures = pictures.mean(1, keepdims=True)
        return torch.stack([_preprocessed(picture, plans, predictor.dataset_json)[0] for picture in pictures])

    return predictor.network.eval(), prepare


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_embeddings_equal_those_of_nnunet(folder, architecture, channels):
    write_nnunet(folder, architecture, channels=channels)
    network, prepare = _reference(folder)
    pictures = _pictures(*CANVAS)
    with torch.no_grad():
        x = prepare(pictures)
        logits = network(x)
        features = network.neck(network.encoder(x)) if architecture == "HRMedSeg" else network.encoder(x)[4]

    teacher = NNUNetTeacher.load(folder, canvas=CANVAS)
    embedding = teacher.embed(_images(pictures))
    assert embedding.shape == (2, teacher.channels, 4, 4)
    torch.testing.assert_close(embedding, features, **CLOSE)

    teacher = NNUNetTeacher.load(folder, canvas=CANVAS, target="logits")
    embedding = teacher.embed(_images(pictures))
    assert embedding.shape == (2, teacher.channels, 4, 4) and teacher.channels == 3 * 16
    # channel 16 k + 4 y + x: output k in row y and column x of the 4 x 4 averages within a pixel
    averages = logits.unflatten(3, (16, 4)).mean(4).unflatten(2, (16, 4)).mean(3)
    torch.testing.assert_close(embedding[:, 16 + 4 * 2 + 3, 1, 2], averages[:, 1, 4 * 1 + 2, 4 * 2 + 3], **CLOSE)
    torch.testing.assert_close(F.pixel_shuffle(embedding, 4), averages, **CLOSE)


@pytest.mark.parametrize("architecture", UNETS)
@pytest.mark.parametrize("stages", [3, 4, 5, 7])
def test_features_of_shallow_and_deep_networks(folder, architecture, stages):
    network = write_nnunet(folder, architecture, stages=stages)
    pictures = _pictures(128, 128)
    teacher = NNUNetTeacher.load(folder, canvas=(128, 128))
    level = min(stages - 1, 4)
    with torch.no_grad():
        features = network.encoder(normalize_images(_images(pictures), teacher.schemes, teacher.use_mask))[level]
    embedding = teacher.embed(_images(pictures))
    assert embedding.shape == (2, features.shape[1], 8, 8)
    torch.testing.assert_close(embedding, F.avg_pool2d(features, 2 ** (4 - level)), **CLOSE)


def test_strides_that_differ_between_axes(folder):
    plans = nnunet_plans()
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["strides"] = [
        [1, 1], [2, 2], [2, 2], [2, 2], [1, 2], [2, 2]
    ]  # fmt: skip
    write_nnunet(folder, plans=plans)
    teacher = NNUNetTeacher.load(folder, canvas=CANVAS)
    assert (teacher.multiple, teacher.pooling, teacher.channels) == ((16, 32), (2, 1), 12)
    assert teacher.embed(torch.rand(1, 3, *CANVAS)).shape == (1, 12, 4, 4)


@pytest.mark.parametrize("target", ["features", "logits"])
@pytest.mark.parametrize("canvas", [(80, 48), (96, 64), (16, 112)])
def test_canvas_that_is_not_divisible_by_the_largest_stride(folder, canvas, target):
    network = write_nnunet(folder, "PlainConvUNet")
    images = _images(_pictures(*canvas))
    teacher = NNUNetTeacher.load(folder, canvas=canvas, target=target)
    embedding = teacher.embed(images)
    assert embedding.shape == (2, teacher.channels, canvas[0] // 16, canvas[1] // 16)

    padded = torch.zeros(2, 3, -(-canvas[0] // 32) * 32, -(-canvas[1] // 32) * 32)
    padded[:, :, : canvas[0], : canvas[1]] = normalize_images(images, teacher.schemes, teacher.use_mask)
    with torch.no_grad():
        expected = network.encoder(padded)[4] if target == "features" else network(padded)
    if target == "logits":
        expected = F.pixel_unshuffle(F.avg_pool2d(expected, 4), 4)
    torch.testing.assert_close(embedding, expected[:, :, : canvas[0] // 16, : canvas[1] // 16], **CLOSE)


@pytest.mark.parametrize("scale, size", [(0.5, (48, 32)), (2, (192, 128)), ("1.1", (112, 64)), (1.0, (96, 64))])
def test_scale_of_the_teachers_input(folder, scale, size):
    network = write_nnunet(folder, "PlainConvUNet", stages=5)
    images = _images(_pictures(96, 64))
    teacher = NNUNetTeacher.load(folder, canvas=(96, 64), scale=scale)
    pixels = normalize_images(images, teacher.schemes, teacher.use_mask)
    with torch.no_grad():
        expected = network.encoder(F.interpolate(pixels, size, mode="bilinear", antialias=True))[4]
    torch.testing.assert_close(teacher.embed(images), expected, **CLOSE)


@pytest.mark.parametrize("black_border", [False, True])
@pytest.mark.parametrize("use_mask", [False, True])
@pytest.mark.parametrize(
    "scheme", ["ZScoreNormalization", "RGBTo01Normalization", "RescaleTo01Normalization", "NoNormalization"]
)
def test_normalization_equals_that_of_nnunets_preprocessing(scheme, use_mask, black_border):
    plans = nnunet_plans(scheme=scheme, use_mask=use_mask)
    dataset = {"channel_names": {str(c): "RGB"[c] for c in range(3)}, "labels": {"background": 0, "one": 1}}
    pictures = _pictures(40, 50, black_border=black_border)
    normalised = normalize_images(_images(pictures), [scheme] * 3, [use_mask] * 3)
    for picture, ours in zip(pictures, normalised, strict=True):
        theirs, box = _preprocessed(picture, plans, dataset)
        assert (theirs.shape != ours.shape) == black_border
        torch.testing.assert_close(ours[(slice(None), *box)], theirs, **CLOSE)


@pytest.mark.parametrize("value", [0.0, 0.3])
@pytest.mark.parametrize("scheme", ["ZScoreNormalization", "RescaleTo01Normalization"])
@pytest.mark.parametrize("use_mask", [False, True])
def test_normalization_of_a_constant_image(scheme, use_mask, value):
    normalised = normalize_images(torch.full((1, 3, 33, 47), value), [scheme] * 3, [use_mask] * 3)
    assert normalised.abs().max() < 1


def test_checkpoint_of_nnunets_trainer_is_loaded(folder, tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    write_nnunet(folder, fold=1)  # for its plans and dataset.json
    plans, dataset = (json.loads((folder / name).read_text()) for name in ("plans.json", "dataset.json"))
    trainer = nnUNetTrainer({**plans, "continue_training": False}, "2d", 0, dataset, CPU)
    data = tmp_path / "nnUNet_preprocessed" / "Dataset001_Test" / "nnUNetPlans_2d"
    data.mkdir(parents=True)
    (data / "case.b2nd").touch()  # nnU-Net checks the names
    trainer.initialize()
    trainer.logger.log("mean_fg_dice", np.nanmean(np.array([0.2, 0.4], np.float32)), 0)
    trainer.logger.log("dice_per_class_or_region", [np.float64(0.2), np.float32(0.4)], 0)
    trainer.logger.log("train_losses", np.mean([np.array(0.1, np.float32)] * 2), 0)
    trainer.logger.log("lrs", trainer.optimizer.param_groups[0]["lr"], 0)
    trainer._best_ema = trainer.logger.get_value("ema_fg_dice", step=-1)
    (folder / "fold_0").mkdir()
    trainer.save_checkpoint(str(folder / "fold_0" / "checkpoint_final.pth"))

    ours, theirs = (torch.load(folder / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False) for fold in (1, 0))
    assert ours.keys() == theirs.keys() and ours["init_args"].keys() == theirs["init_args"].keys()

    teacher = NNUNetTeacher.load(folder, canvas=CANVAS, target="logits")
    assert teacher.described["fold"] == "0"
    images = _images(_pictures(*CANVAS))
    trainer.set_deep_supervision_enabled(False)
    with torch.no_grad():
        logits = trainer.network.eval()(normalize_images(images, teacher.schemes, teacher.use_mask))
    torch.testing.assert_close(teacher.embed(images), F.pixel_unshuffle(F.avg_pool2d(logits, 4), 4), **CLOSE)


def test_teacher_is_frozen_and_described(folder):
    network = write_nnunet(folder, "ResidualEncoderUNet")
    teacher = NNUNetTeacher.load(folder, canvas=CANVAS, target="logits").to(CPU)
    assert not any(module.training for module in teacher.network.modules())
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    assert not teacher.feeds_decoder
    embedding = teacher.embed(torch.rand(1, 3, *CANVAS, requires_grad=True))
    assert embedding.dtype == torch.float32 and not embedding.requires_grad and not embedding.is_inference()

    card = teacher.card()
    assert card["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert card["file"] == "nnUNetTrainer__nnUNetPlans__2d/fold_0/checkpoint_final.pth" and len(card["sha256"]) == 64
    expected = {
        "dataset": "Dataset001_Test",
        "trainer": "nnUNetTrainer",
        "plans": "nnUNetPlans",
        "configuration": "2d",
        "fold": "0",
        "target": "logits",
        "license": "unknown",
    }
    assert {name: card[name] for name in expected} == expected
    json.dumps(card)

    card = NNUNetTeacher.load(folder, canvas=CANVAS).card()
    assert card["parameters"] == sum(parameter.numel() for parameter in network.encoder.parameters())


def test_networks_of_this_package_as_teachers_count_encoder_and_neck(folder):
    network = write_nnunet(folder, "HRMedSeg")
    assert isinstance(network, HRMedSeg)
    card = NNUNetTeacher.load(folder, canvas=CANVAS).card()
    assert card["parameters"] == sum(p.numel() for part in (network.encoder, network.neck) for p in part.parameters())


@pytest.mark.parametrize("name", ["licence", "license"])
def test_license_of_the_dataset_is_recorded(folder, name):
    write_nnunet(folder)
    dataset = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**dataset, name: "CC-BY-SA 4.0"}))
    assert NNUNetTeacher.load(folder, canvas=CANVAS).card()["license"] == "CC-BY-SA 4.0"


def test_fold_and_checkpoint_are_chosen(folder):
    def chosen(**options):
        return NNUNetTeacher.load(folder, canvas=CANVAS, **options).file.relative_to(folder).as_posix()

    write_nnunet(folder, fold="all")
    assert chosen() == "fold_all/checkpoint_final.pth"
    write_nnunet(folder, fold=10)
    write_nnunet(folder, fold=2, checkpoint="checkpoint_best.pth")
    (folder / "fold_0").mkdir()
    assert chosen() == "fold_2/checkpoint_best.pth"
    assert chosen(fold=10) == chosen(fold="10") == "fold_10/checkpoint_final.pth"
    assert chosen(fold="all") == "fold_all/checkpoint_final.pth"
    write_nnunet(folder, fold=2)
    assert chosen() == "fold_2/checkpoint_final.pth"
    assert chosen(checkpoint="checkpoint_best.pth") == "fold_2/checkpoint_best.pth"
    with pytest.raises(CheckpointError, match="no fold 0 has checkpoint_final.pth or .*there: 0, 2, 10, all"):
        chosen(fold=0)
    with pytest.raises(CheckpointError, match="no fold has checkpoint_latest.pth"):
        chosen(checkpoint="checkpoint_latest.pth")


@pytest.mark.parametrize("core", ["core", "_core"])
def test_scalars_of_numpy_1_and_2_are_read(folder, core):
    """NumPy 2 moved the function that pickled scalars refer to."""
    write_nnunet(folder)
    file = folder / "fold_0" / "checkpoint_final.pth"
    with zipfile.ZipFile(file) as written:
        parts = {name: written.read(name) for name in written.namelist()}
    with zipfile.ZipFile(file, "w") as rewritten:
        for name, content in parts.items():
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content or b"numpy.core.multiarray" in content
                for other in (b"numpy._core.", b"numpy.core."):
                    content = content.replace(other, f"numpy.{core}.".encode())
            rewritten.writestr(name, content)
    assert load_checkpoint(file)["_best_ema"] == 0.41


def test_trainer_with_an_older_signature_is_supported(folder, monkeypatch):
    network = write_nnunet(folder)
    build = nnUNetTrainer.build_network_architecture
    seen = []

    def old_signature(architecture_class_name, kwargs, imports, inputs, outputs, enable_deep_supervision=True):
        seen.append((architecture_class_name, enable_deep_supervision))
        manager = PlansManager(json.loads((folder / "plans.json").read_text()))
        return build(manager, manager.get_configuration("2d"), inputs, outputs, enable_deep_supervision)

    monkeypatch.setattr(nnUNetTrainer, "build_network_architecture", staticmethod(old_signature))
    teacher = NNUNetTeacher.load(folder, canvas=CANVAS)
    assert seen == [("dynamic_network_architectures.architectures.unet.PlainConvUNet", False)]
    for name, weight in network.state_dict().items():
        torch.testing.assert_close(teacher.network.state_dict()[name], weight)


def test_default_is_the_first_fold_and_not_a_copy_under_another_name(folder):
    write_nnunet(folder, fold="all")
    shutil.copytree(folder / "fold_all", folder / "fold_0_first")
    assert NNUNetTeacher.load(folder, canvas=CANVAS).card()["fold"] == "all"
