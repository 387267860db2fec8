import pytest

from nnunet_hrmedseg import weights
from nnunet_hrmedseg.doctor.checks import check_weights
from nnunet_hrmedseg.io import shell
from nnunet_hrmedseg.trainers.initialization import ENVIRONMENT_VARIABLE
from nnunet_hrmedseg.weights import write_encoder
from nnunet_hrmedseg.weights.student import Normalize, Student, encoder_architecture
from tests.weights.published_layout import write_published


@pytest.fixture
def encoder(tmp_path):
    architecture = encoder_architecture(embed_dim=24, depth=1, decoder_dim=16)
    card = {"architecture": architecture, "normalization": Normalize("zscore").card(), "name": "a tiny one"}
    return write_encoder(tmp_path / "tiny.safetensors", Student(architecture).state_dict(), card)


def test_bundled_encoder_is_reported(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    (result,) = check_weights()
    assert result.ok and not result.note
    assert weights.load_encoder(weights.BUNDLED).sha256[:12] in result.message


def test_damaged_bundled_encoder_is_a_problem(monkeypatch, encoder):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    encoder.path.write_bytes(b"half")
    monkeypatch.setattr(weights, "BUNDLED", encoder.path)
    (result,) = check_weights()
    assert not result.ok and "sha256" in result.message and "reinstall" in result.fix


def test_advice_unsets_a_variable_with_the_command_of_the_system(monkeypatch, tmp_path):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "gone"))
    for windows, mend in ((False, "unset {}"), (True, "Remove-Item Env:{}")):
        monkeypatch.setattr(shell, "ON_WINDOWS", windows)
        _, result = check_weights()
        assert not result.ok and result.fix == mend.format(ENVIRONMENT_VARIABLE)


def test_encoder_in_the_environment_is_checked(monkeypatch, encoder):
    monkeypatch.setattr(shell, "ON_WINDOWS", False)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(encoder.path))
    assert [result.ok for result in check_weights()] == [True, True]
    encoder.path.unlink()
    _, result = check_weights()
    assert not result.ok and result.fix == f"unset {ENVIRONMENT_VARIABLE}"
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "none")
    assert next(check_weights()).note


def test_encoder_on_the_hub_is_checked(monkeypatch, encoder, hub):
    names = {"e.safetensors": encoder.path.read_bytes(), "e.json": encoder.path.with_suffix(".json").read_bytes()}
    hub.commit("a/b", names)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "hf://a/b/e.safetensors")
    _, result = check_weights()
    assert result.ok and encoder.sha256[:12] in result.message
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "hf://a/b/other.safetensors")
    _, result = check_weights()
    assert not result.ok and "no file other.json" in result.message


def test_published_file_is_checked(monkeypatch, tmp_path):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(write_published(tmp_path / "SAM_PFD_10K.pth")))
    _, result = check_weights()
    assert result.ok and "SAM ViT-H" in result.message
