"""SAM as a teacher, compared with the independent implementations in transformers and timm."""

import sys
from functools import partial

import pytest
import timm
import torch
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch.nn import functional as F

from nnunet_hrmedseg.errors import CheckpointError, PlanError, SetupError
from nnunet_hrmedseg.teachers.sam import VARIANTS, SAMTeacher, vit_architecture
from tests.teachers.tiny_teachers import Payload, write_sam

NATIVE = (64, 64)


@pytest.fixture
def file(tmp_path):
    return write_sam(tmp_path / "weights.pth")


def _images(height, width):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def _normalized(images):
    """Normalize with the statistics of SAM, independently of the package."""
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    return (images - mean) / std


def test_embedding_equals_that_of_transformers(file):
    transformers = pytest.importorskip("transformers")
    config = transformers.SamVisionConfig(
        hidden_size=32,
        output_channels=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=64,
        window_size=3,
        global_attn_indexes=[1],
        mlp_dim=128,
    )
    reference = transformers.SamVisionModel(config).eval()
    renamed = {}
    for name, weight in torch.load(file, weights_only=True).items():
        if name.startswith("image_encoder."):
            name = name.replace("image_encoder.", "vision_encoder.").replace("blocks.", "layers.")
            name = name.replace(".norm1", ".layer_norm1").replace(".norm2", ".layer_norm2")
            name = name.replace("patch_embed.proj.", "patch_embed.projection.")
            for number, part in enumerate(("conv1", "layer_norm1", "conv2", "layer_norm2")):
                name = name.replace(f"neck.{number}.", f"neck.{part}.")
            renamed[name] = weight
    reference.load_state_dict(renamed)

    images = _images(*NATIVE)
    with torch.no_grad():
        expected = reference(_normalized(images)).last_hidden_state
    embedding = SAMTeacher.load(file, canvas=NATIVE).embed(images)
    assert embedding.shape == (2, 16, 4, 4)
    torch.testing.assert_close(embedding, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("canvas", [(64, 64), (96, 96), (48, 80)])
def test_embedding_on_another_canvas_equals_that_of_timm_with_resampled_positions(file, canvas):
    grid = canvas[0] // 16, canvas[1] // 16
    weights = torch.load(file, weights_only=True)
    weights = {k.removeprefix("image_encoder."): v for k, v in weights.items() if k.startswith("image_encoder.")}
    weights = {k.replace("mlp.lin", "mlp.fc"): v for k, v in weights.items()}
    if grid != (4, 4):
        positions = weights["pos_embed"].permute(0, 3, 1, 2)
        positions = F.interpolate(positions, grid, mode="bicubic", antialias=True)
        weights["pos_embed"] = positions.permute(0, 2, 3, 1)
    for axis, side in zip("hw", grid, strict=True):
        name = f"blocks.1.attn.rel_pos_{axis}"
        weights[name] = F.interpolate(weights[name].T[None], 2 * side - 1, mode="linear")[0].T
    reference = VisionTransformerSAM(
        img_size=canvas,
        embed_dim=32,
        depth=3,
        num_heads=4,
        window_size=3,
        global_attn_indexes=(1,),
        use_rel_pos=True,
        neck_chans=16,
        num_classes=0,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    ).eval()
    reference.load_state_dict(weights)

    images = _images(*canvas)
    with torch.no_grad():
        expected = reference.forward_features(_normalized(images))
    embedding = SAMTeacher.load(file, canvas=canvas).embed(images)
    assert embedding.shape == (2, 16, *grid)
    torch.testing.assert_close(embedding, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("variant, name", [("ViT-B", "base"), ("ViT-L", "large"), ("ViT-H", "huge")])
def test_variants_are_recognized_and_match_those_of_timm(variant, name):
    with torch.device("meta"):
        network = timm.create_model(f"samvit_{name}_patch16", pretrained=False, num_classes=0)
    shapes = {
        "image_encoder." + weight.replace("mlp.fc", "mlp.lin"): tuple(tensor.shape)
        for weight, tensor in network.state_dict().items()
    }
    assert vit_architecture(shapes) == VARIANTS[variant]


@pytest.mark.parametrize(
    "sizes",
    [
        {"width": 24, "num_heads": 2, "depth": 2, "global_blocks": (0,), "window_size": 2},
        {"global_blocks": (0, 1, 2)},
        {"global_blocks": ()},
        {"image_size": 96, "neck_width": 8},
    ],
)
def test_architecture_is_read_from_the_shapes(tmp_path, sizes):
    file = write_sam(tmp_path / "weights.pth", **sizes)
    teacher = SAMTeacher.load(file, canvas=NATIVE)
    expected = {"width": 32, "num_heads": 4, "depth": 3, "global_blocks": (1,), "window_size": 3, "neck_width": 16}
    expected |= {name: value for name, value in sizes.items() if name != "image_size"}
    if expected["global_blocks"] == (0, 1, 2):
        expected["window_size"] = 0
    assert {name: getattr(teacher.architecture, name) for name in expected} == expected
    assert teacher.architecture.grid == (sizes.get("image_size", 64) // 16,) * 2
    assert teacher.embed(_images(*NATIVE)).shape == (2, teacher.channels, 4, 4)


def test_teacher_is_frozen_and_described(file):
    teacher = SAMTeacher.load(file, canvas=NATIVE).to(torch.device("cpu"))
    assert not teacher.network.training
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    assert teacher.channels == 16 and teacher.feeds_decoder
    embedding = teacher.embed(_images(*NATIVE).requires_grad_())
    assert not embedding.requires_grad and not embedding.is_inference()

    card = teacher.card()
    encoder = [v for k, v in torch.load(file, weights_only=True).items() if k.startswith("image_encoder.")]
    assert card["parameters"] == sum(weight.numel() for weight in encoder)
    assert card["file"] == "weights.pth" and len(card["sha256"]) == 64
    assert card["license"] == "unknown"  # not one of Meta's files
    assert card["variant"] == "ViT of width 32 and depth 3"


def test_half_precision_files_are_evaluated_in_float32(tmp_path, file):
    halved = tmp_path / "half.pth"
    torch.save({name: weight.half() for name, weight in torch.load(file, weights_only=True).items()}, halved)
    embedding = SAMTeacher.load(halved, canvas=NATIVE).embed(_images(*NATIVE))
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(
        embedding, SAMTeacher.load(file, canvas=NATIVE).embed(_images(*NATIVE)), atol=0.1, rtol=0
    )


def test_old_file_format_is_read(tmp_path, file):
    old = tmp_path / "old.pth"
    torch.save(torch.load(file, weights_only=True), old, _use_new_zipfile_serialization=False)
    images = _images(*NATIVE)
    expected = SAMTeacher.load(file, canvas=NATIVE).embed(images)
    torch.testing.assert_close(SAMTeacher.load(old, canvas=NATIVE).embed(images), expected)


def test_file_may_be_deleted_after_loading(file):
    teacher = SAMTeacher.load(file, canvas=NATIVE)
    expected = teacher.embed(_images(*NATIVE))
    file.write_bytes(b"")
    torch.testing.assert_close(teacher.embed(_images(*NATIVE)), expected)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_the_file_is_executed(tmp_path, file, zipped):
    made = tmp_path / "made_by_the_payload"
    evil = tmp_path / "evil.pth"
    content = {**torch.load(file, weights_only=True), "extra": Payload(made)}
    torch.save(content, evil, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="was not loaded.*open.*execute"):
        SAMTeacher.load(evil, canvas=NATIVE)
    assert not made.exists()
    torch.load(evil, weights_only=False)
    assert made.exists()  # the payload works


def _truncated(file):
    file.write_bytes(file.read_bytes()[:5000])


def _text(file):
    file.write_text("<html>404</html>")


def _without(name):
    def remove(file):
        weights = torch.load(file, weights_only=True)
        torch.save({key: value for key, value in weights.items() if not key.startswith(name)}, file)

    return remove


def _replaced_by(content):
    return lambda file: torch.save(content, file)


def _with_other_shape(file):
    weights = torch.load(file, weights_only=True)
    torch.save({**weights, "image_encoder.blocks.2.mlp.lin1.weight": torch.zeros(5, 5)}, file)


@pytest.mark.parametrize(
    "damage, message",
    [
        (_truncated, "damaged"),
        (_text, "is a web page"),
        (_without("image_encoder.blocks.1.attn.qkv"), "blocks.1.attn.qkv.weight"),
        (_without("image_encoder.neck.0"), "neck.0.weight"),
        (_without("image_encoder.pos_embed"), "pos_embed"),
        (_with_other_shape, "blocks.2.mlp"),
        (_without("image_encoder"), "not a checkpoint of SAM.*prompt_encoder"),
        (_replaced_by([torch.zeros(1)]), "list"),
        (_replaced_by({"network_weights": {}}), "nnU-Net.*folder"),
        (_replaced_by({"model": {"image_encoder.trunk.pos_embed": torch.zeros(1)}}), "SAM2"),
    ],
)
def test_other_files_are_rejected(file, damage, message):
    damage(file)
    with pytest.raises(CheckpointError, match=message) as raised:
        SAMTeacher.load(file, canvas=NATIVE)
    assert str(file) in str(raised.value)


def test_missing_file_is_reported(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        SAMTeacher.load(tmp_path / "nothing.pth", canvas=NATIVE)


@pytest.mark.parametrize("canvas", [(100, 100), (64, 0), (64,)])
def test_invalid_canvas_is_rejected(file, canvas):
    with pytest.raises(PlanError, match="multiples of 16"):
        SAMTeacher.load(file, canvas=canvas)


def test_unknown_option_is_rejected(file):
    with pytest.raises(PlanError, match="does not know fold"):
        SAMTeacher.load(file, canvas=NATIVE, fold=1)


def test_missing_timm_is_reported(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.models.vision_transformer_sam", None)
    with pytest.raises(SetupError, match=r"timm is not installed.*nnunet_hrmedseg\[sam\]"):
        SAMTeacher.load(file, canvas=(64, 64))
