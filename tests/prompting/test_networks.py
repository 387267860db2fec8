"""Compatibility of encoders and SAMs."""

import pytest
import torch

from nnunet_hrmedseg.errors import CheckpointError
from nnunet_hrmedseg.prompting.networks import HRMedSegSAM, HRMedSegSAM2, load_promptable, load_whole_sam
from nnunet_hrmedseg.weights import BUNDLED
from nnunet_hrmedseg.weights.student import encoder_architecture
from tests.prompting.tiny_sams import (
    SIDE,
    decoder_id,
    sam,
    write_mobile_sam,
    write_sam2,
    write_sam_folder,
    write_sam_pth,
    write_student,
)


@pytest.fixture
def pth(tmp_path):
    return write_sam_pth(tmp_path / "sam.pth")


def test_encoder_and_neck_have_the_weights_of_the_file(tmp_path, pth):
    file = write_student(tmp_path / "e.safetensors")
    network = HRMedSegSAM(file.path, pth)
    state = network.image_encoder.student.state_dict()
    assert all(torch.equal(state[name], value) for name, value in file.state.items())
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    (level,) = network.embed(torch.rand(1, 3, SIDE, SIDE))
    assert level.shape == (1, 32, SIDE // 16, SIDE // 16)


def test_sam2_reads_three_levels(tmp_path):
    file = write_student(tmp_path / "e.safetensors", "sam2")
    network = load_promptable(file.path, write_sam2(tmp_path / "sam2"))
    shapes = [tuple(level.shape) for level in network.embed(torch.rand(1, 3, SIDE, SIDE))]
    assert shapes == [(1, 4, 16, 16), (1, 8, 8, 8), (1, 32, 4, 4)]


def test_canvas_and_fit_are_read_from_the_card(tmp_path, pth):
    small = write_student(tmp_path / "e.safetensors", recipe={"canvas": [96, 96]})
    network = HRMedSegSAM(small.path, pth)
    assert (network.canvas, network.fit) == (96, "stretch") and network.decoder.mask_side == 24
    assert HRMedSegSAM(write_student(tmp_path / "p.safetensors").path, pth).fit == "pad"


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"width": 16}, "gives an embedding of 16 channels, and the decoder .* reads 32"),
        ({"kind": "sam2"}, r"was distilled from tiny sam2: the decoder of SAM cannot read"),
        ({"teacher": {"kind": "nnunet", "name": "my nnU-Net"}}, "was distilled from my nnU-Net"),
        ({"teacher": None}, "was not distilled: the decoder of SAM cannot read its embedding"),
        ({"recipe": {"canvas": [64, 128]}}, "canvas of 64 x 128 pixels, and SAM's decoder reads square ones"),
    ],
    ids=str,
)
def test_incompatible_encoders_are_rejected(tmp_path, pth, changed, message):
    file = write_student(tmp_path / "e.safetensors", **changed)
    with pytest.raises(CheckpointError, match=message) as raised:
        load_promptable(file.path, pth)
    assert "hrmedseg encoder distill --promptable" in str(raised.value)


def test_sam2_encoder_without_levels_is_rejected(tmp_path):
    folder = write_sam2(tmp_path / "sam2")
    file = write_student(
        tmp_path / "e.safetensors",
        teacher={"kind": "sam2", "name": "SAM2"},
        architecture=encoder_architecture(embed_dim=24, depth=1, decoder_dim=32),
    )
    with pytest.raises(
        CheckpointError, match=r"without --promptable.*--start .*e.safetensors --normalization imagenet"
    ):
        load_promptable(file.path, folder)


def test_bundled_or_missing_encoder_is_rejected(pth):
    with pytest.raises(CheckpointError, match="cannot read its embedding.*hrmedseg encoder distill"):
        load_promptable(BUNDLED, pth)
    with pytest.raises(CheckpointError, match="Give --encoder .*bundled encoder was not made from a SAM"):
        load_promptable(None, pth)


def test_sam_must_match_the_class(tmp_path, pth):
    file = write_student(tmp_path / "e.safetensors")
    with pytest.raises(CheckpointError, match="is a sam, and HRMedSegSAM2 takes a sam2"):
        HRMedSegSAM2(file.path, pth)


def test_decoder_of_another_teacher_is_reported(tmp_path, pth, capsys):
    right = write_student(tmp_path / "right.safetensors", decoder_id=decoder_id(sam()))
    load_promptable(right.path, pth)
    load_promptable(right.path, write_mobile_sam(tmp_path / "mobile_sam.pt"))
    assert not capsys.readouterr().err
    wrong = write_student(tmp_path / "wrong.safetensors", decoder_id=decoder_id(sam(seed=1)))
    load_promptable(wrong.path, pth)
    assert "Note:" in (printed := capsys.readouterr().err) and "another decoder" in printed and "tiny sam" in printed


def test_unsupported_complete_sams_are_rejected(tmp_path):
    with pytest.raises(CheckpointError, match="read from Meta's .pth, not from a folder"):
        load_whole_sam(write_sam_folder(tmp_path / "sam"))
    with pytest.raises(CheckpointError, match="image_encoder.patch_embed.proj.weight"):
        load_whole_sam(write_mobile_sam(tmp_path / "mobile_sam.pt"))
