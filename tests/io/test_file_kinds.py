"""All readers of weights and JSON recognize files of another kind."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hrmedseg_onnx.file_kinds import recognize_file
from nnunet_hrmedseg.errors import CheckpointError, summarize_error
from nnunet_hrmedseg.io.checkpoints import load_checkpoint
from nnunet_hrmedseg.io.files import read_json
from nnunet_hrmedseg.weights import load_encoder
from tests.prompting.tiny_sams import write_student

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2564550879\n"
PAGE = b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"


def _torchscript(file):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 1), torch.zeros(1, 2)), str(file))


def _zip(file, name="sam.pth"):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"x" * 100)


def _tar(file):
    with tarfile.open(file, "w") as archive:
        archive.addfile(tarfile.TarInfo("sam.pth"))


def _cut(file):
    torch.save({"a": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:1000])


KINDS = {
    "a Git LFS pointer.*git lfs pull": lambda file: file.write_bytes(POINTER),
    "a web page": lambda file: file.write_bytes(PAGE),
    "a web page .HTML or XML": lambda file: file.write_bytes(
        b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"
    ),
    "empty": lambda file: file.write_bytes(b""),
    "a TorchScript archive.*would have to be executed": _torchscript,
    "a zip archive of 1 files: unpack": _zip,
    "a document of an office program": lambda file: _zip(file, "[Content_Types].xml"),
    "a file of NumPy arrays": lambda file: file.write_bytes(_npz()),
    "damaged or cut off": _cut,
    "packed with gzip: unpack": lambda file: file.write_bytes(gzip.compress(b"x")),
    "a tar archive": _tar,
    "an HDF5 file": lambda file: file.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)),
    "an ONNX model": lambda file: file.write_bytes(b"\x08\x07\x12\x07pytorch\x1a\x052.1.0"),
    "a safetensors file": lambda file: save_file({"a": torch.zeros(2)}, file),
    "an image .PNG": lambda file: file.write_bytes(b"\x89PNG\r\n\x1a\n"),
}
TEXTS = {
    "text, not weights; it begins with 'Entry not found'": b"Entry not found",
    'text, not weights; it begins with \'{"error": ': b'{"error": "Repository not found"}',
}


def _npz():
    content = io.BytesIO()
    np.savez(content, a=np.zeros(2))
    return content.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_recognized_without_advice_of_torch(tmp_path, kind, recwarn):
    file = tmp_path / "sam_vit_b.pth"
    KINDS[kind](file)
    with pytest.raises(CheckpointError, match=f"sam_vit_b.pth is {kind}") as raised:
        load_checkpoint(file)
    assert "weights_only" not in str(raised.value)
    assert not [warning for warning in recwarn if "torch.jit.load" in str(warning.message)]


@pytest.mark.parametrize("kind", TEXTS)
def test_text_instead_of_weights_is_recognized(tmp_path, kind):
    (tmp_path / "sam.pth").write_bytes(TEXTS[kind])
    with pytest.raises(CheckpointError, match=f"sam.pth is {kind}"):
        load_checkpoint(tmp_path / "sam.pth")


@pytest.mark.parametrize("old", [False, True])
def test_checkpoints_are_not_mistaken_for_other_kinds(tmp_path, old):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth", _use_new_zipfile_serialization=not old)
    assert recognize_file(tmp_path / "a.pth", text=True) is None
    assert load_checkpoint(tmp_path / "a.pth")["a"].tolist() == [1, 1]
    assert recognize_file(tmp_path / "nowhere.pth") is None


@pytest.mark.parametrize("content", [b"\x80\x02\x93NONSENSE", b"\x80\x02cnumpy\nnonsense\nq\x00.", b"\x00\x01\x02"])
def test_damaged_checkpoints_are_reported_without_advice_of_torch(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="a.pth (is damaged|was not loaded)") as raised:
        load_checkpoint(tmp_path / "a.pth")
    assert "weights_only" not in str(raised.value)


def test_advice_of_torch_is_removed_from_a_line():
    message = (
        "Weights only load failed. In PyTorch 2.6, we changed the default value of the `weights_only` argument.\n"
        "Please file an issue so that we can make `weights_only=True` compatible: WeightsUnpickler error: \n\n"
        "Unsupported operand 118\n\nCheck the documentation of torch.load to learn more about types"
    )
    assert summarize_error(RuntimeError(message)) == "Unsupported operand 118"
    assert summarize_error(RuntimeError("Weights only load failed. ``x`` must be imported\n weights_only")) == (
        "``x`` must be imported"
    )
    assert summarize_error(RuntimeError("Cannot use ``weights_only=True`` with it")) == "RuntimeError"
    assert summarize_error(KeyError("a\nb")) == r"'a\nb'"


@pytest.mark.parametrize("content, kind", [(POINTER, "a Git LFS pointer"), (PAGE, "a web page"), (b"", "empty")])
def test_kinds_are_recognized_instead_of_json_and_encoders(tmp_path, content, kind):
    file = write_student(tmp_path / "e.safetensors").path
    whole, card = file.read_bytes(), file.with_suffix(".json").read_bytes()
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"e.safetensors is {kind}"):
        load_encoder(file)
    file.write_bytes(whole)
    file.with_suffix(".json").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"e.json is not the card of an encoder .*it is {kind}"):
        load_encoder(file)
    with pytest.raises(ValueError, match=f"it is {kind}"):
        read_json(file.with_suffix(".json"))
    file.with_suffix(".json").write_bytes(card)
    assert load_encoder(file).path == file


def test_position_of_damage_in_json_is_reported(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"a": 1})[:-1])
    with pytest.raises(ValueError, match="line 1 column"):
        read_json(Path(tmp_path / "a.json"))
