"""The published encoder: parity with the authors' code, and rejected files."""

import hashlib
import re

import pytest
import torch

from nnunet_hrmedseg.errors import CheckpointError, PlanError, SetupError
from nnunet_hrmedseg.weights import load_encoder
from nnunet_hrmedseg.weights.published import import_encoder, read_published
from nnunet_hrmedseg.weights.student import Normalize, Student, encoder_architecture
from tests.teachers.tiny_teachers import Payload, write_sam
from tests.weights.published_layout import (
    MEAN,
    STD,
    decoder_state,
    normalized,
    published_forward,
    published_state,
    write_published,
)

FULL = {"width": 96, "groups": (2, 6, 2), "decoder_dim": 256}
LAYER = "image_encoder.layers.1.blocks.0"


def embedding(file, images):
    """Compute the embedding by the network of this package, from images in 0..1."""
    student = Student(file.architecture).eval()
    student.load_state_dict(file.state)
    normalization = file.normalization
    normalize = Normalize(normalization["scheme"], normalization["mean"], normalization["std"])
    with torch.no_grad():
        return student(normalize(images))


# ---- parity ----


@pytest.mark.parametrize("size", [32, 64, 80, 160])
@pytest.mark.parametrize("normalization, divisor", [("distillation", MEAN), ("imagenet", STD)])
def test_embedding_equals_that_of_the_published_forward_pass(tmp_path, size, normalization, divisor):
    source = write_published(tmp_path / "p.pth", grid=size // 16)
    file = import_encoder(source, tmp_path / "encoder", normalization=normalization)
    images = torch.rand(2, 3, size, size)
    expected = published_forward(published_state(grid=size // 16), normalized(images, divisor))
    assert expected.std() > 0.5
    torch.testing.assert_close(embedding(file, images).double(), expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("options", [FULL, {"groups": (0, 1, 2)}, {"layers": 0}, {"kernels": (3, 1)}], ids=str)
def test_other_depths_widths_and_necks_are_read_from_the_shapes(tmp_path, options):
    file = read_published(write_published(tmp_path / "p.pth", **options))
    images = torch.rand(1, 3, 64, 64)
    expected = published_forward(published_state(**options), normalized(images, MEAN))
    torch.testing.assert_close(embedding(file, images).double(), expected, rtol=0, atol=5e-5)


def test_architecture_of_the_published_file_is_the_default(tmp_path):
    assert read_published(write_published(tmp_path / "p.pth", **FULL)).architecture == encoder_architecture()


# ---- the card ----


def test_card_has_source_teacher_data_licenses_and_normalization(tmp_path):
    source = write_published(tmp_path / "SAM_PFD_10K.pth")
    file = import_encoder(source, tmp_path / "encoder")
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    assert file.path == tmp_path / "encoder" / "encoder.safetensors"
    card = load_encoder(file.path).card
    assert card["source"]["file"] == "SAM_PFD_10K.pth" and card["source"]["sha256"] == sha256
    assert card["teacher"] | {"kind": "sam", "name": "SAM ViT-H", "license": "Apache-2.0"} == card["teacher"]
    assert card["data"] == {"sources": {"SA-1B": 10000}} and "research only" in card["licenses"]["data"]
    assert card["normalization"]["std"] == card["normalization"]["mean"] == [0.485, 0.456, 0.406]
    assert card["normalization"]["assumed"] == "distillation"
    assert card["recipe"]["canvas"] == [64, 64] and card["recipe"]["fit"] == "stretch"
    assert card["source"]["left_out"] == {"rotation tables": 4}


def test_published_file_is_an_encoder_file(tmp_path):
    source = write_published(tmp_path / "SAM_PFD_10K.pth")
    direct, imported = load_encoder(source), import_encoder(source, tmp_path / "encoder")
    assert direct.path == source and direct.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert direct.card.items() <= imported.card.items()
    assert direct.state.keys() == imported.state.keys()
    assert all(torch.equal(direct.state[name], value) for name, value in imported.state.items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"model": state, "optimizer": {"state": {}}},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {name: value.half() if value.is_floating_point() else value for name, value in state.items()},
        lambda state: {name: value for name, value in state.items() if not name.endswith("rotations")},
    ],
    ids=["module.", "model", "state_dict", "half", "without tables"],
)
def test_wrapped_files_give_the_same_encoder(tmp_path, wrap):
    torch.save(wrap(published_state()), tmp_path / "p.pth")
    expected = read_published(write_published(tmp_path / "plain.pth")).state
    found = read_published(tmp_path / "p.pth").state
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-3)
        assert value.dtype == expected[name].dtype


def test_decoder_parts_of_a_fine_tuned_checkpoint_are_skipped_and_reported(tmp_path):
    torch.save({**published_state(), **decoder_state()}, tmp_path / "p.pth")
    file = read_published(tmp_path / "p.pth")
    assert file.card["source"]["left_out"] == {"mask_decoder": 2, "prompt_encoder": 1, "rotation tables": 4}
    assert "fine-tuned" in file.card["name"] and file.card["teacher"]["kind"] != "sam"
    expected = read_published(write_published(tmp_path / "plain.pth")).state
    assert all(torch.equal(file.state[name], value) for name, value in expected.items())


# ---- rejected files ----


def changed(**entries):
    state = published_state()
    for name, value in entries.items():
        if value is None:
            del state[name]
        else:
            state[name] = value(state.get(name)) if callable(value) else value
    return state


@pytest.mark.parametrize(
    "state, message",
    [
        (lambda: changed(**{f"{LAYER}.attn.qk.bias": None}), rf"missing: {LAYER}\.attn\.qk\.bias"),
        (lambda: changed(**{"image_encoder.layers.0.blocks.1.conv3.bn.running_var": None}), r"missing: .*running_var"),
        (lambda: changed(**{f"{LAYER}.cpe1.weight": torch.ones(1)}), rf"unknown: {LAYER}\.cpe1\.weight"),
        (lambda: changed(**{"image_encoder.absolute_pos_embed": torch.ones(1)}), r"unknown: image_encoder\.absolute"),
        (lambda: changed(**{"neck.7.weight": torch.ones(1)}), r"unknown: neck\.7\.weight"),
        (
            lambda: changed(**{f"{LAYER}.act_proj.weight": lambda old: old[:7]}),
            rf"another shape or type: {LAYER}\.act_proj\.weight \(7, 48\) instead of \(48, 48\)",
        ),
        (lambda: changed(**{"neck.1.bias": lambda old: old.to_sparse()}), r"another shape or type: neck\.1\.bias"),
        (lambda: changed(**{"neck.1.bias": torch.zeros(1).expand(16)}), r"another shape or type: neck\.1\.bias"),
        (lambda: changed(**{"neck.1.bias": lambda old: old * torch.nan}), r"not finite in neck\.1\.bias"),
        (lambda: {n: v for n, v in published_state().items() if ".layers.0." in n or "patch" in n}, "is missing"),
        (lambda: {n: v for n, v in published_state().items() if not n.startswith("neck.")}, "neck.0.weight.* missing"),
        (lambda: changed(**{"neck.0.weight": lambda old: old[..., 0]}), r"neck\.0\.weight has the shape"),
        (lambda: published_state(width=36), r"the width a multiple of 48"),
        (lambda: {"a": torch.ones(1)}, r"proj\.weight is missing, and it has a\."),
        (dict, "it has nothing"),
        (lambda: {"network_weights": {}, "init_args": {}}, "checkpoint of nnU-Net.*-pretrained_weights"),
        (
            lambda: {"model": {"image_encoder.trunk.patch_embed.proj.weight": torch.ones(1)}},
            "SAM2 in Meta's format.*hrmedseg encoder distill",
        ),
        (lambda: [1, 2], "holds a list"),
    ],
)
def test_mismatched_weights_are_reported(tmp_path, state, message):
    torch.save(state(), tmp_path / "p.pth")
    with pytest.raises(CheckpointError, match=message) as error:
        load_encoder(tmp_path / "p.pth")
    assert str(tmp_path / "p.pth") in str(error.value)


def test_complete_sam_is_not_an_encoder(tmp_path):
    sam = write_sam(tmp_path / "sam_vit_h_4b8939.pth")
    for read in (load_encoder, lambda file: import_encoder(file, tmp_path / "encoder")):
        with pytest.raises(CheckpointError, match=f"hrmedseg encoder distill --teacher {re.escape(str(sam))}"):
            read(sam)
    assert not (tmp_path / "encoder").exists()


def test_truncated_download_is_rejected(tmp_path):
    file = write_published(tmp_path / "SAM_PFD_10K.pth")
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match=r"damaged.*download it again"):
        load_encoder(file)


def test_hostile_file_executes_nothing(tmp_path):
    torch.save({**published_state(), "epoch": Payload(tmp_path / "executed")}, tmp_path / "p.pth")
    with pytest.raises(CheckpointError, match="would have to be executed"):
        load_encoder(tmp_path / "p.pth")
    assert not (tmp_path / "executed").exists()


def test_encoder_is_replaced_only_on_request(tmp_path):
    source = write_published(tmp_path / "p.pth")
    first = import_encoder(source, tmp_path / "encoder")
    with pytest.raises(SetupError, match="exist already.*--overwrite"):
        import_encoder(source, tmp_path / "encoder", normalization="imagenet")
    assert load_encoder(first.path).card == first.card
    second = import_encoder(source, tmp_path / "encoder", normalization="imagenet", overwrite=True)
    assert load_encoder(second.path).normalization["std"] == [0.229, 0.224, 0.225]


def test_failed_import_keeps_the_earlier_encoder(tmp_path):
    first = import_encoder(write_published(tmp_path / "p.pth"), tmp_path / "encoder")
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError):
        import_encoder(tmp_path / "other.pth", tmp_path / "encoder", overwrite=True)
    assert load_encoder(first.path).sha256 == first.sha256


def test_another_normalization_is_rejected(tmp_path):
    with pytest.raises(PlanError, match="distillation, imagenet"):
        read_published(write_published(tmp_path / "p.pth"), "zscore")
