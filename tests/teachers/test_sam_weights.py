"""SAM in checkpoints of other training frameworks."""

import pytest
import torch

from nnunet_hrmedseg.errors import CheckpointError
from nnunet_hrmedseg.prompting.checkpoints import read_decoder
from nnunet_hrmedseg.prompting.networks import HRMedSegSAM
from nnunet_hrmedseg.teachers import load_teacher
from nnunet_hrmedseg.teachers.sam_weights import sam_weights
from tests.prompting.tiny_sams import SIDE, in_metas_names, sam, write_sam_pth, write_student


def prefixed(weights, prefix):
    return {prefix + name: value for name, value in weights.items()}


WRAPPED = {
    "under model": lambda w: {"model": w, "optimizer": {"state": {}}, "epoch": 3},
    "under state_dict": lambda w: {"state_dict": w, "args": {"lr": 1e-4}},
    "under model, with 'module.' before each name": lambda w: {"model": prefixed(w, "module.")},
    "with 'module.' before each name": lambda w: prefixed(w, "module."),
    "under state_dict, with 'model.sam.' before each name": lambda w: {
        "state_dict": {**prefixed(w, "model.sam."), "criterion.weight": torch.ones(2)}
    },
    "under model / state_dict": lambda w: {"model": {"state_dict": w}},
    "under net": lambda w: {"net": w, "ema": w},
}


@pytest.mark.parametrize("how", WRAPPED)
def test_wrapped_weights_equal_those_of_the_plain_file(tmp_path, capsys, how):
    plain = write_sam_pth(tmp_path / "plain.pth")
    wrapped = tmp_path / "wrapped.pth"
    torch.save(WRAPPED[how](in_metas_names(sam())), wrapped)
    teacher, expected = (load_teacher(file, canvas=(SIDE, SIDE)) for file in (wrapped, plain))
    images = torch.rand(1, 3, SIDE, SIDE)
    assert torch.equal(teacher.embed(images), expected.embed(images))
    assert teacher.decoder_id == expected.decoder_id is not None
    assert teacher.note == f"The weights of SAM in {wrapped} are {how}." and expected.note == ""
    found, whole = read_decoder(wrapped), read_decoder(plain)
    assert found.state.keys() == whole.state.keys() and found.canvas == whole.canvas == SIDE
    assert all(torch.equal(found.state[name], whole.state[name]) for name in whole.state)
    HRMedSegSAM(write_student(tmp_path / "student.safetensors").path, wrapped)
    assert f"Note: The weights of SAM in {wrapped} are {how}." in capsys.readouterr().err


def test_two_sams_in_one_checkpoint_are_rejected(tmp_path):
    weights = in_metas_names(sam())
    both = {"model": {**prefixed(weights, "student."), **prefixed(weights, "teacher.")}}
    with pytest.raises(CheckpointError, match="holds several SAMs, with names that begin with student., teacher."):
        sam_weights(tmp_path / "a.pth", both)


def test_other_checkpoints_are_unchanged(tmp_path):
    other = {"a": torch.ones(2), "model": {"sam_mask_decoder.iou_token.weight": torch.ones(2)}, 5: torch.ones(1)}
    assert sam_weights(tmp_path / "a.pth", other) == ({"a": other["a"]}, "")


def test_image_encoder_of_another_kind_is_rejected(tmp_path):
    weights = {n: w for n, w in in_metas_names(sam()).items() if not n.startswith("image_encoder.")}
    torch.save({"model": {**weights, "image_encoder.layers.0.weight": torch.ones(2)}}, tmp_path / "mobile.pt")
    with pytest.raises(
        CheckpointError, match="image encoder is of another kind, as MobileSAM's, which cannot be a teacher"
    ):
        load_teacher(tmp_path / "mobile.pt", canvas=(SIDE, SIDE))
