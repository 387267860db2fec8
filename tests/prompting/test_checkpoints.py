"""Reading prompt encoder and mask decoder: every format gives the weights of transformers."""

import json
import sys

import pytest
import torch

from nnunet_hrmedseg.errors import CheckpointError, SetupError
from nnunet_hrmedseg.prompting.checkpoints import read_decoder
from nnunet_hrmedseg.prompting.prompt_decoder import PromptDecoder
from tests.prompting.tiny_sams import (
    SIDE,
    in_metas_names,
    rewrite_json,
    sam,
    sam2,
    write_mobile_sam,
    write_sam2,
    write_sam_folder,
    write_sam_pth,
    write_student,
)
from tests.teachers.tiny_teachers import Payload, write_nnunet, write_sam

SAMS = {"pth": write_sam_pth, "folder": write_sam_folder}


def decoder_weights(model):
    return {k: v for k, v in model.state_dict().items() if not k.startswith("vision_encoder.")}


@pytest.mark.parametrize("write", SAMS.values(), ids=SAMS)
def test_all_formats_of_sam_give_the_same_network(tmp_path, write):
    decoder = PromptDecoder(read_decoder(write(tmp_path / "sam.pth")))
    expected = decoder_weights(sam())
    found = decoder.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert decoder.kind == "sam" and decoder.canvas == SIDE and decoder.mask_side == SIDE // 4
    assert decoder.widths == (32,) and not decoder.training
    assert not any(parameter.requires_grad for parameter in decoder.parameters())


def test_mobile_sam_is_read(tmp_path):
    file = read_decoder(write_mobile_sam(tmp_path / "mobile_sam.pt"))
    assert file.canvas == 1024  # its image encoder does not define it
    found = PromptDecoder(file, SIDE).model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in decoder_weights(sam()).items())


@pytest.mark.parametrize("model_type", ["sam2", "sam2_video"])
def test_sam2_is_read(tmp_path, model_type):
    folder = write_sam2(tmp_path / "sam2", model_type)
    decoder = PromptDecoder(read_decoder(folder))
    assert decoder.kind == "sam2" and decoder.canvas == SIDE and decoder.widths == (4, 8, 32)
    expected, found = decoder_weights(sam2(folder)), decoder.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_another_canvas_keeps_the_weights(tmp_path):
    """Test a folder as on the hub, whose configuration includes the size of the grid."""
    folder = write_sam_folder(tmp_path / "sam")
    config = json.loads((folder / "config.json").read_text())
    assert config["prompt_encoder_config"].get("image_embedding_size") == SIDE // 16
    decoder = PromptDecoder(read_decoder(folder), 96)
    logits, _ = decoder([torch.randn(1, 32, 6, 6)], boxes=torch.tensor([[1.0, 2.0, 50.0, 60.0]]))
    assert decoder.mask_side == 24 and logits.shape == (1, 1, 24, 24)


def test_only_safetensors_and_tensors_are_read(tmp_path):
    ran = tmp_path / "ran"
    torch.save({**in_metas_names(sam()), "payload": Payload(ran)}, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match="would have to be executed"):
        read_decoder(tmp_path / "sam.pth")
    folder = write_sam_folder(tmp_path / "sam")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="has no model.safetensors.*executes nothing"):
        read_decoder(folder)
    assert not ran.exists()


def test_missing_sam_is_reported():
    with pytest.raises(CheckpointError, match=r"Give --sam.*sam_vit_h_4b8939.pth.*mobile_sam.pt.*transformers"):
        read_decoder(None)
    with pytest.raises(CheckpointError, match=r"no SAM at nowhere.pth.*sam_vit_h_4b8939.pth"):
        read_decoder("nowhere.pth")


def _nnunet(folder):
    write_nnunet(folder / "model")
    return folder / "model" / "fold_0" / "checkpoint_final.pth"


def _sam2_of_meta(folder):
    weights = {"image_encoder.trunk.pos_embed": torch.zeros(1), "sam_mask_decoder.iou_token.weight": torch.zeros(1, 32)}
    torch.save({"model": weights}, folder / "sam2.pt")
    return folder / "sam2.pt"


def _text(folder):
    (folder / "sam.pth").write_text("no checkpoint")
    return folder / "sam.pth"


def _without(folder, name):
    weights = in_metas_names(sam())
    del weights[name]
    torch.save(weights, folder / "sam.pth")
    return folder / "sam.pth"


def _of_type(folder, model_type):
    write_sam_folder(folder / "sam")
    rewrite_json(folder / "sam" / "config.json", model_type=model_type)
    return folder / "sam"


def _nonsense(folder):
    write_sam_folder(folder / "sam")
    rewrite_json(folder / "sam" / "config.json", mask_decoder_config={"hidden_size": "wide"})
    return folder / "sam"


def _truncated(folder):
    file = write_sam_folder(folder / "sam") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    return folder / "sam"


@pytest.mark.parametrize(
    "make, message",
    [
        (_nnunet, "It is a checkpoint of nnU-Net"),
        (_sam2_of_meta, "SAM2 in Meta's own format: give a folder"),
        (_text, "is text, not weights; it begins with 'no checkpoint'"),
        (lambda folder: write_sam(folder / "encoder_only.pth"), "prompt encoder or mask decoder lacks"),
        (lambda folder: _without(folder, "mask_decoder.mask_tokens.weight"), "lacks 'mask_decoder.mask_tokens.weight'"),
        (lambda folder: _without(folder, "mask_decoder.output_upscaling.1.bias"), "Missing key.*layer_norm.bias"),
        (
            lambda folder: _without(folder, "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
            "no positional encoding",
        ),
        (lambda folder: _of_type(folder, "bert"), "model_type 'bert'"),
        (_truncated, "damaged"),
        (_nonsense, "damaged or not a SAM"),
        (lambda folder: folder, "no readable config.json"),
        (lambda folder: write_student(folder / "encoder.safetensors").path, "goes to --encoder"),
    ],
)
def test_other_files_are_rejected(tmp_path, make, message):
    file = make(tmp_path)
    with pytest.raises(CheckpointError, match=message) as raised:
        PromptDecoder(read_decoder(file))
    assert str(file) in str(raised.value)


def test_missing_transformers_is_reported(tmp_path, monkeypatch):
    file = read_decoder(write_sam_pth(tmp_path / "sam.pth"))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SetupError, match=r"^transformers is not installed.*nnunet_hrmedseg\[sam\]"):
        PromptDecoder(file)
