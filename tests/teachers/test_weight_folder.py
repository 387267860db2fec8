"""Folders in the format of transformers: several files, variants, and unsupported folders."""

import json

import pytest
import torch

from nnunet_hrmedseg.errors import CheckpointError, DataError
from nnunet_hrmedseg.prompting.checkpoints import read_decoder
from nnunet_hrmedseg.teachers import load_teacher
from nnunet_hrmedseg.teachers.weight_folder import find_weights
from tests.prompting.tiny_sams import SIDE, sam, sam2, write_sam2, write_sam_folder

INDEX = "model.safetensors.index.json"
SAVED = {"shards": {"max_shard_size": "60KB"}, "variant": {"variant": "fp16"}}
SAVED["both"] = {**SAVED["shards"], **SAVED["variant"]}


@pytest.fixture(params=SAVED)
def saved(request, tmp_path):
    """Return the format, and folders of a SAM and a SAM2 in this format."""
    options = SAVED[request.param]
    half = torch.half if "variant" in options else torch.float
    sam().to(half).save_pretrained(tmp_path / "sam", **options)
    sam2(write_sam2(tmp_path / "whole")).to(half).save_pretrained(tmp_path / "sam2", **options)
    return request.param, tmp_path


def test_decoder_equals_that_of_a_single_file(saved):
    how, folder = saved
    write_sam_folder(folder / "whole_sam")
    for name, whole in (("sam", "whole_sam"), ("sam2", "whole")):
        files = find_weights(folder / name)
        assert (len(files.files) > 1) == (how != "variant") and files.variant == (None if how == "shards" else "fp16")
        found, expected = read_decoder(folder / name).state, read_decoder(folder / whole).state
        assert found.keys() == expected.keys() and {value.dtype for value in found.values()} == {torch.float32}
        for key, value in expected.items():
            assert torch.equal(found[key], value if how == "shards" else value.half().float())


def test_sam2_as_a_teacher(saved):
    how, folder = saved
    teacher, whole = (load_teacher(folder / name, canvas=(SIDE, SIDE)) for name in ("sam2", "whole"))
    images = torch.rand(1, 3, SIDE, SIDE)
    embedding, expected = teacher.embed(images), whole.embed(images)
    if how == "shards":
        assert torch.equal(embedding, expected)
    else:
        assert (embedding - expected).abs().max() < 0.02 * expected.std()
    names = {"shards": INDEX, "variant": "model.fp16.safetensors", "both": "model.safetensors.index.fp16.json"}
    card = teacher.card()
    assert card["file"] == f"sam2/{names[how]}" and card["sha256"] != whole.card()["sha256"]


def _index(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(json.dumps(content))


def _renamed(folder, *names):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    for name in names:
        (folder / name).write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda f: _renamed(f, "pytorch_model.bin"),
            "has no model.safetensors, but pytorch_model.bin.*executes nothing",
        ),
        (lambda f: _renamed(f, "model.bf16.safetensors", "model.fp16.safetensors"), "several variants.*Keep one"),
        (lambda f: _index(f, {"weight_map": {"a": "model-00001-of-00002.safetensors"}}), "lacks model-00001-of-00002"),
        (
            lambda f: _index(f, {"weight_map": {"a": "../secret.safetensors"}}),
            "not safetensors files of its own folder",
        ),
        (lambda f: _index(f, {"weight_map": {"a": "model.bin"}}), "lists model.bin, which are not safetensors"),
        (lambda f: _index(f, {"weight_map": {"a": 5}}), "lists 5"),
        (lambda f: _index(f, {"weight_map": []}), "does not say which file holds which weight"),
        (lambda f: _index(f, []), "index of weights"),
        (
            lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
            "model.safetensors is a Git LFS pointer",
        ),
        (lambda f: (f / "model.safetensors").write_text("<!doctype html>"), "model.safetensors is a web page"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 100), "damaged"),
    ],
)
@pytest.mark.parametrize("read", [read_decoder, lambda folder: load_teacher(folder, canvas=(SIDE, SIDE))])
def test_unsupported_folders_are_rejected(tmp_path, change, message, read):
    folder = write_sam2(tmp_path / "sam2")
    change(folder)
    kind = DataError if message == "index of weights" else CheckpointError
    with pytest.raises(kind, match=message) as raised:
        read(folder)
    assert str(folder) in str(raised.value)
