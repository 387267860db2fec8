"""`hrmedseg encoder distill --promptable`: encoders for HRMedSegSAM and HRMedSegSAM2."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from nnunet_hrmedseg.architectures import HRMedSeg
from nnunet_hrmedseg.architectures.fine_levels import pack
from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.encoders.canvas_images import CanvasImages
from nnunet_hrmedseg.encoders.distillation import Distillation
from nnunet_hrmedseg.encoders.image_sources import find_images
from nnunet_hrmedseg.io.fitting import PADDING, fit_image, fit_size
from nnunet_hrmedseg.prompting.networks import load_promptable, load_whole_sam
from nnunet_hrmedseg.prompting.predictor import Predictor
from nnunet_hrmedseg.teachers import load_teacher
from nnunet_hrmedseg.trainers.initialization import initialize_encoder
from nnunet_hrmedseg.weights import load_encoder
from nnunet_hrmedseg.weights.student import Normalize, Student, encoder_architecture, load_student_weights
from tests.encoders.tiny_datasets import discs, write_folder
from tests.prompting.tiny_sams import SIDE, decoder_id, sam, sam2, write_sam2, write_sam_pth, write_student
from tests.teachers.tiny_teachers import write_nnunet

SMALL = ["--canvas", "64", "64", "--embed_dim", "24", "--depth", "2", "--decoder_dim", "32", "--drop_path", "0"]
QUICK = ["-device", "cpu", "--workers", "0", "--batch_size", "4"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr("nnunet_hrmedseg.encoders.loop.draw_curve", lambda rows, file: None)


@pytest.fixture(scope="module")
def sams(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sams")
    write_sam_pth(folder / "sam.pth")
    write_sam2(folder / "sam2")
    return folder


def distill(teacher, images, output, *options):
    arguments = ["distill", "--teacher", teacher, "--images", images, "-o", output, *SMALL, *QUICK, *options]
    return main(list(map(str, arguments)))


# ---- resizing and padding to the canvas ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, expected",
    [((50, 3000), (17, 1024)), ((3000, 50), (1024, 17)), ((4000, 4000), (1024, 1024)), ((1, 3000), (1, 1024)),
     ((1200, 1800), (683, 1024)), ((10, 20), (512, 1024))],
)  # fmt: skip
def test_longer_side_fills_the_canvas(size, expected):
    assert fit_size(size, (1024, 1024), "pad") == expected
    assert fit_size(size, (1024, 512), "stretch") == (1024, 512)


def test_padding_is_below_and_on_the_right(tmp_path):
    image = Image.fromarray(np.full((20, 40, 3), 9, np.uint8))
    pixels = np.asarray(fit_image(image, (64, 64), "pad"))
    assert (pixels[:32] == 9).all() and (pixels[32:] == PADDING).all()
    assert (np.asarray(fit_image(image.rotate(90, expand=True), (64, 64), "pad"))[:, 32:] == PADDING).all()
    assert (np.asarray(fit_image(image, (64, 64), "stretch")) == 9).all()
    image.save(tmp_path / "a.png")
    item = CanvasImages(find_images([tmp_path]), (64, 64), "pad")[0]
    assert np.array_equal(item.image.permute(1, 2, 0), pixels)


# ---- levels ----------------------------------------------------------------------------------------------------------


def test_sam2_returns_its_levels_on_request(sams):
    teacher = load_teacher(sams / "sam2", canvas=(SIDE, SIDE))
    images = torch.rand(2, 3, SIDE, SIDE)
    embedding = teacher.embed(images)
    described = teacher.card()
    assert teacher.packed_channels == 32 and embedding.shape == (2, 32, 4, 4)
    teacher.enable_multiscale()
    packed = teacher.embed(images)
    with torch.no_grad():
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        expected = sam2(sams / "sam2").get_image_embeddings((images - mean) / std)
    torch.testing.assert_close(packed, pack(expected), atol=1e-4, rtol=1e-4)
    assert teacher.widths == (4, 8, 32) and teacher.packed_channels == packed.shape[1] == 4 * 16 + 8 * 4 + 32
    assert teacher.card() != described and "1/4 level, 4 channels; 1/8 level, 8 channels" in teacher.card()["embedding"]
    torch.testing.assert_close(teacher.flipped(packed), pack([level.flip(-1) for level in expected]))


def test_levels_on_a_canvas_that_sam2_enlarges(sams):
    teacher = load_teacher(sams / "sam2", canvas=(80, 80))
    teacher.enable_multiscale()
    assert teacher.embed(torch.rand(1, 3, 80, 80)).shape == (1, 128, 5, 5)


def test_sam_has_one_level(sams):
    teacher = load_teacher(sams / "sam.pth", canvas=(SIDE, SIDE))
    before = teacher.embed(torch.ones(1, 3, SIDE, SIDE))
    teacher.enable_multiscale()
    assert torch.equal(teacher.embed(torch.ones(1, 3, SIDE, SIDE)), before) and teacher.fine_channels == ()
    assert teacher.decoder_id == decoder_id(sam())


def test_levels_have_equal_weight():
    architecture = encoder_architecture(embed_dim=24, depth=1, decoder_dim=32) | {"fine_channels": [4, 8]}
    module = Distillation(Student(architecture), Normalize("mean_std"), 128, exact=True).eval()
    images, weight = torch.rand(2, 3, 32, 32), torch.ones(2)
    levels = module.student.levels(module.normalize(images))
    assert [tuple(level.shape[1:]) for level in levels] == [(4, 8, 8), (8, 4, 4), (32, 2, 2)]
    assert module((images, pack(levels), weight)) == 0
    target = [torch.randn_like(level) for level in levels]
    target[0] *= 100  # independent of its scale
    spread = [level.var() for level in target]
    expected = sum(F.mse_loss(a, b) / v * spread[-1] for a, b, v in zip(levels, target, spread, strict=True))
    torch.testing.assert_close(module((images, pack(target), weight)), expected)


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam.pth", "sam2"])
def test_masks_of_the_student_approach_those_of_the_teacher(sams, tmp_path, name, capsys):
    """After a few seconds of distillation, masks are closer to the complete SAM's than those of a random student."""
    images = write_folder(tmp_path / "images", 40)
    options = ["--promptable", "--epochs", 15, "--lr", "5e-3", "--cache", tmp_path / "cache"]
    assert distill(sams / name, images, tmp_path / "run", *options) == 0
    assert "hrmedseg segment IMAGE --encoder" in capsys.readouterr().out
    trained = tmp_path / "run" / "encoder.safetensors"
    card = load_encoder(trained).card
    assert card["normalization"]["scheme"] == "mean_std" and len(card["decoder_id"]) == 16
    assert card["recipe"]["fit"] == ("pad" if name == "sam.pth" else "stretch")
    assert card["architecture"].get("fine_channels") == (None if name == "sam.pth" else [4, 8])
    kind = name.removesuffix(".pth")
    random = write_student(tmp_path / "random.safetensors", kind, architecture=card["architecture"]).path

    predictors = [Predictor(load_whole_sam(sams / name))]
    predictors += [Predictor(load_promptable(encoder, sams / name)) for encoder in (trained, random)]
    assert "Note" not in capsys.readouterr().err
    distances, agreements = np.zeros(2), np.zeros(2)
    for seed in range(100, 106):  # images that were not used in training
        found = []
        for predictor in predictors:
            predictor.set_image(discs(seed)[0])
            # SAM2 replaces an uncertain single mask by another one, and with random weights, all are uncertain
            found.append(predictor.predict([[5, 5, 40, 35], [0, 0, 56, 40]], multimask=name == "sam2"))
        for k in range(2):
            distances[k] += np.abs(found[k + 1].logits - found[0].logits).mean()
            agreements[k] += (found[k + 1].masks == found[0].masks).mean() / 6
    assert distances[0] < 0.5 * distances[1] and agreements[0] > agreements[1]


@pytest.fixture(scope="module")
def with_levels(sams, tmp_path_factory):
    """Return an encoder for SAM2, and the images that it was distilled on."""
    folder = tmp_path_factory.mktemp("distilled")
    write_folder(folder / "images", 8)
    assert distill(sams / "sam2", folder / "images", folder / "run", "--promptable", "--epochs", 1) == 0
    return folder


def test_training_loads_encoder_and_neck(with_levels):
    file = load_encoder(with_levels / "run" / "encoder.safetensors")
    assert any(name.startswith("fine_levels.") for name in file.state)
    network = HRMedSeg(3, 2, decoder_heads=2, decoder_mlp_dim=16, **encoder_architecture(
        embed_dim=24, depth=2, decoder_dim=32))  # fmt: skip
    initialize_encoder(network, file, ["ZScoreNormalization"] * 3)
    state = network.state_dict()
    for name, value in file.state.items():
        assert name.startswith("fine_levels.") == (name not in state)
        assert name not in state or torch.equal(state[name], value)


def test_encoders_with_and_without_levels_can_start_from_each_other(sams, with_levels, tmp_path):
    images, encoder = with_levels / "images", with_levels / "run" / "encoder.safetensors"
    plain = ["--epochs", 1, "--normalization", "imagenet"]
    assert distill(sams / "sam2", images, tmp_path / "plain", *plain, "--start", encoder) == 0
    start = tmp_path / "plain" / "encoder.safetensors"
    assert not any(name.startswith("fine_levels.") for name in load_encoder(start).state)
    assert distill(sams / "sam2", images, tmp_path / "again", "--promptable", "--epochs", 1, "--start", start) == 0
    architecture = encoder_architecture(embed_dim=24, depth=2, decoder_dim=32)
    student = Student({**architecture, "fine_channels": [4, 8]})
    file = load_student_weights(student, str(encoder), {**architecture, "fine_channels": [4, 8]}, Normalize("mean_std"))
    assert all(torch.equal(student.state_dict()[name], value) for name, value in file.state.items())


def test_padded_and_stretched_images_have_separate_caches(sams, tmp_path):
    images = write_folder(tmp_path / "images", 5)
    cache = ["--cache", tmp_path / "cache", "--epochs", 1]
    assert distill(sams / "sam.pth", images, tmp_path / "plain", *cache) == 0
    assert distill(sams / "sam.pth", images, tmp_path / "padded", *cache, "--promptable") == 0
    abouts = [json.loads(file.read_text()) for file in (tmp_path / "cache").glob("*/about.json")]
    assert len(abouts) == 2 and sum("fitted by pad" in about["teacher"] for about in abouts) == 1


def test_defaults_are_kept_without_promptable(sams, tmp_path):
    images = write_folder(tmp_path / "images", 5)
    assert distill(sams / "sam2", images, tmp_path / "run", "--epochs", 1) == 0
    card = load_encoder(tmp_path / "run" / "encoder.safetensors").card
    assert "fine_channels" not in card["architecture"] and "fit" not in card["recipe"]
    assert card["normalization"]["scheme"] == "zscore"


def test_unsupported_options_are_reported(sams, tmp_path, capsys):
    images = write_folder(tmp_path / "images", 5)
    assert distill(sams / "sam.pth", images, tmp_path / "run", "--promptable", "--canvas", 64, 96) == 1
    assert "a square canvas, not 64 x 96" in capsys.readouterr().err
    write_nnunet(tmp_path / "model")
    assert distill(tmp_path / "model", images, tmp_path / "run", "--promptable") == 1
    assert "a teacher of kind nnunet has none" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
