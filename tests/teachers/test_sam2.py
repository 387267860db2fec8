"""SAM2 as a teacher, compared with the inputs of the mask decoder in transformers."""

import json
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nnunet_hrmedseg.errors import CheckpointError, PlanError, SetupError
from nnunet_hrmedseg.teachers.sam2 import SAM2Teacher
from tests.teachers.tiny_teachers import write_sam2

transformers = pytest.importorskip("transformers")

NATIVE = (64, 64)
MODEL_TYPES = ["sam2", "sam2_video"]


@pytest.fixture(scope="module", params=MODEL_TYPES)
def written(request, tmp_path_factory):
    return write_sam2(tmp_path_factory.mktemp("teachers") / "sam2.1-hiera-none", model_type=request.param)


@pytest.fixture
def folder(tmp_path):
    return write_sam2(tmp_path / "model")


def _pictures(height, width):
    return np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)


def _images(pictures):
    return torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255


def _reference(folder):
    return transformers.Sam2Model.from_pretrained(folder, local_files_only=True).eval()


def test_levels_equal_the_inputs_of_the_mask_decoder_in_transformers(written):
    pictures = _pictures(*NATIVE)
    size = {"height": NATIVE[0], "width": NATIVE[1]}
    processed = transformers.Sam2ImageProcessor(size=size)(images=list(pictures), return_tensors="pt")
    expected = _reference(written).get_image_embeddings(processed["pixel_values"])

    teacher = SAM2Teacher.load(written, canvas=NATIVE)
    with torch.no_grad():
        levels = teacher._levels(_images(pictures))
    assert [tuple(level.shape) for level in levels] == [(2, 4, 16, 16), (2, 8, 8, 8), (2, 32, 4, 4)]
    for level, of_transformers in zip(levels, expected, strict=True):
        torch.testing.assert_close(level, of_transformers, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(teacher.embed(_images(pictures)), expected[-1], atol=2e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "canvas, taken", [((96, 96), (96, 96)), ((32, 128), (32, 128)), ((80, 48), (96, 64)), ((16, 64), (32, 64))]
)
def test_canvas_is_enlarged_to_multiples_of_32(written, canvas, taken):
    images = _images(_pictures(*canvas))
    embedding = SAM2Teacher.load(written, canvas=canvas).embed(images)
    assert embedding.shape == (2, 32, taken[0] // 16, taken[1] // 16)

    reference = _reference(written)
    resized = F.interpolate(images, taken, mode="bilinear", antialias=True)
    mean = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)
    with torch.no_grad():
        pyramid = reference.vision_encoder((resized * 255 - mean) / std).fpn_hidden_states
    expected = pyramid[-1] + reference.no_memory_embedding.reshape(1, 32, 1, 1)
    torch.testing.assert_close(embedding, expected, atol=2e-5, rtol=1e-5)


def test_published_sizes_require_multiples_of_32(folder):
    teacher = SAM2Teacher.load(folder, canvas=NATIVE)
    with torch.device("meta"):
        teacher.__init__(folder, transformers.Sam2Model(transformers.Sam2Config()), teacher.weights)
    assert teacher.multiple == 32 and teacher.channels == 256


def test_teacher_is_frozen_and_described(written):
    teacher = SAM2Teacher.load(written, canvas=NATIVE).to(torch.device("cpu"))
    assert not teacher.network.training
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    assert teacher.channels == 32 and teacher.feeds_decoder
    embedding = teacher.embed(_images(_pictures(*NATIVE)).requires_grad_())
    assert embedding.dtype == torch.float32 and not embedding.requires_grad and not embedding.is_inference()

    card = teacher.card()
    assert card["parameters"] == sum(p.numel() for p in _reference(written).vision_encoder.parameters())
    assert card["file"] == "sam2.1-hiera-none/model.safetensors" and len(card["sha256"]) == 64
    assert card["license"] == "unknown"
    json.dumps(card)


def test_license_of_the_model_card_is_recorded(folder):
    (folder / "README.md").write_text(
        "---\nlibrary_name: transformers\nlicense: apache-2.0\n---\n# SAM2\nlicense: mine\n"
    )
    assert SAM2Teacher.load(folder, canvas=NATIVE).card()["license"] == "apache-2.0"


def test_missing_transformers_is_reported(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert SAM2Teacher.recognizes(folder)
    with pytest.raises(SetupError, match=r"transformers is not installed.*nnunet_hrmedseg\[sam\]"):
        SAM2Teacher.load(folder, canvas=NATIVE)


def _truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def _only_a_pickle(folder):
    weights = {name: torch.zeros(1) for name in "ab"}
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def _without_encoder_weights(folder):
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = {name: weight for name, weight in load_file(file).items() if "vision_encoder.neck" not in name}
    save_file(weights, file, metadata={"format": "pt"})


def _other_sizes(folder):
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["fpn_hidden_size"] = 16
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "damage, message",
    [
        (_truncated, "damaged"),
        (_only_a_pickle, "model.safetensors.*executes nothing"),
        (_without_encoder_weights, "lacks weights.*neck"),
        (_other_sizes, "does not fit"),
        (lambda folder: (folder / "config.json").write_text("{"), "no readable config.json"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "'bert'; SAM2 has sam2"),
    ],
)
def test_other_folders_are_rejected(folder, damage, message):
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as raised:
        SAM2Teacher.load(folder, canvas=NATIVE)
    assert str(folder) in str(raised.value)


def test_invalid_canvas_and_option_are_rejected(folder):
    with pytest.raises(PlanError, match="multiples of 16"):
        SAM2Teacher.load(folder, canvas=(100, 100))
    with pytest.raises(PlanError, match="does not know scale"):
        SAM2Teacher.load(folder, canvas=NATIVE, scale=2.0)
