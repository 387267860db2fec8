import hashlib
import json

import pytest
import torch

from nnunet_hrmedseg.errors import CheckpointError
from nnunet_hrmedseg.weights import load_encoder, write_encoder
from nnunet_hrmedseg.weights.student import Normalize, Student, encoder_architecture

ARCHITECTURE = encoder_architecture(embed_dim=24, depth=2, decoder_dim=16)


def _card(**changed):
    return {"name": "tiny", "architecture": ARCHITECTURE, "normalization": Normalize("zscore").card(), **changed}


@pytest.fixture
def student():
    torch.manual_seed(0)
    return Student(ARCHITECTURE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_written_encoder_is_read(tmp_path, student, dtype):
    written = write_encoder(tmp_path / "e.safetensors", student.state_dict(), _card(), dtype)
    read = load_encoder(tmp_path / "e.safetensors")
    assert read.sha256 == written.sha256 == hashlib.sha256((tmp_path / "e.safetensors").read_bytes()).hexdigest()
    assert read.card["name"] == "tiny" and read.architecture == ARCHITECTURE
    assert read.state.keys() == student.state_dict().keys()
    for name, value in student.state_dict().items():
        expected = value.to(dtype).float() if value.is_floating_point() else value
        assert torch.equal(read.state[name], expected)


def test_home_folder_may_be_a_tilde(tmp_path, student, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    written = write_encoder(tmp_path / "e.safetensors", student.state_dict(), _card())
    assert load_encoder("~/e.safetensors").path == written.path


def test_decoder_is_not_written(tmp_path, student):
    state = {**student.state_dict(), "decoder.x": torch.ones(1), "module.encoder.y": torch.ones(1)}
    read = write_encoder(tmp_path / "e.safetensors", state, _card())
    assert read.state.keys() == student.state_dict().keys()


def test_other_weights_are_written_with_the_card_of_a_file(tmp_path, student):
    first = write_encoder(tmp_path / "e.safetensors", student.state_dict(), _card())
    changed = {name: value + 1 for name, value in first.state.items()}
    second = write_encoder(tmp_path / "e.safetensors", changed, first.card)
    assert second.sha256 != first.sha256 and second.card == {**first.card, "sha256": second.sha256}


def test_non_finite_values_are_not_written(tmp_path, student):
    state = student.state_dict()
    state["neck.layers.0.weight" if "neck.layers.0.weight" in state else next(iter(state))].fill_(1e6)
    with pytest.raises(CheckpointError, match="not finite as torch.float16"):
        write_encoder(tmp_path / "e.safetensors", state, _card(), torch.float16)
    assert not list(tmp_path.iterdir())


def _damage(file):
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def _edit_card(**changed):
    def edit(file):
        card = json.loads(file.with_suffix(".json").read_text())
        file.with_suffix(".json").write_text(json.dumps({**card, **changed}))

    return edit


def _hash_of_rubbish(file):
    file.write_bytes(b"rubbish")
    _edit_card(sha256=hashlib.sha256(b"rubbish").hexdigest())(file)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda file: file.unlink(), "There is no encoder file"),
        (lambda file: file.with_suffix(".json").unlink(), "There is no card"),
        (_damage, "has the sha256 .* but its card .* describes a file with"),
        (lambda file: file.write_bytes(file.read_bytes()[:1000]), "has the sha256"),
        (lambda file: file.with_suffix(".json").write_text("{"), "is not the card of an encoder"),
        (lambda file: file.with_suffix(".json").write_text("[1]"), "is not the card of an encoder"),
        (_edit_card(format=2), "format 2"),
        (_edit_card(architecture={"embed_dim": 24}), "not complete"),
        (_edit_card(normalization={"scheme": "other"}), "is not the card of an encoder"),
        (_edit_card(normalization={"scheme": "zscore", "mean": [0.5], "std": [1.0]}), "not complete"),
        (_hash_of_rubbish, "is not a safetensors file"),
    ],
)
def test_damage_is_reported(tmp_path, student, damage, message):
    file = write_encoder(tmp_path / "e.safetensors", student.state_dict(), _card()).path
    damage(file)
    with pytest.raises(CheckpointError, match=message) as error:
        load_encoder(file)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("given", [".", "model.safetensors"])
def test_sam_of_transformers_is_not_an_encoder(tmp_path, given):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=f"two files.*hrmedseg encoder distill --teacher {tmp_path}"):
        load_encoder(tmp_path / given)


def test_pickle_is_not_opened(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    file = tmp_path / "e.safetensors"
    torch.save(Payload(), file)
    card = {**_card(), "format": 1, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    file.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_encoder(file)
    assert not (tmp_path / "executed").exists()


def test_other_file_endings_are_rejected(tmp_path, student):
    file = write_encoder(tmp_path / "e.safetensors", student.state_dict(), _card()).path
    other = file.rename(tmp_path / "e.bin")
    with pytest.raises(CheckpointError, match="should end in .safetensors"):
        load_encoder(other)


@pytest.mark.parametrize("key", ["licenses", "licences"])
def test_licenses_are_read_from_cards_of_all_versions(tmp_path, key):
    file = write_encoder(tmp_path / "e.safetensors", {}, {**_card(), key: {"data": "CC0"}})
    assert file.licenses == {"data": "CC0"}
