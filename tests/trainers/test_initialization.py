import hashlib
import json

import pytest
import torch

from nnunet_hrmedseg.architectures import HERSeg, HRMedSeg
from nnunet_hrmedseg.errors import CheckpointError
from nnunet_hrmedseg.plans.overrides import hrmedseg_plans
from nnunet_hrmedseg.trainers.initialization import (
    ENVIRONMENT_VARIABLE,
    adapt_channels,
    chosen_encoder,
    fold_normalization,
    initialize_encoder,
    record,
    recorded_by_other_folds,
)
from nnunet_hrmedseg.weights import load_encoder, write_encoder
from nnunet_hrmedseg.weights.encoder_file import IMAGENET
from nnunet_hrmedseg.weights.published import import_encoder
from nnunet_hrmedseg.weights.student import Normalize, Student, encoder_architecture
from tests.plans.stock_plans import stock_plans
from tests.teachers.tiny_teachers import write_sam
from tests.weights.published_layout import MEAN as PUBLISHED_MEAN
from tests.weights.published_layout import normalized, published_forward, published_state, write_published

WIDTHS = {"embed_dim": 24, "depth": 2, "decoder_dim": 16}
DECODER = {"decoder_heads": 2, "decoder_mlp_dim": 16}
ZSCORE = "ZScoreNormalization"
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


@pytest.fixture
def encoder(tmp_path):
    """Return a function that writes a random encoder file with statistics that differ from those of a new network."""

    def write(name="e", scheme="zscore", **changed):
        torch.manual_seed(1)
        architecture = encoder_architecture(**{**WIDTHS, **changed})
        student = Student(architecture).train()
        student(torch.rand(2, 3, 32, 32))
        card = {"architecture": architecture, "normalization": Normalize(scheme, MEAN, STD).card(), "name": name}
        return write_encoder(tmp_path / f"{name}.safetensors", student.state_dict(), card)

    return write


def _configuration(**changed):
    configuration = hrmedseg_plans(stock_plans(), num_training_cases=5)["configurations"]["2d"]
    configuration["architecture"]["arch_kwargs"].update({**WIDTHS, **changed})
    return configuration


def _network(cls=HRMedSeg, channels=3):
    torch.manual_seed(2)
    return cls(channels, 2, **WIDTHS, **DECODER)


# ---- choice of the file ----


def test_plans_use_the_bundled_encoder_by_default():
    assert _configuration()["encoder_weights"] == "bundled"


def test_plans_choose_the_encoder(encoder):
    file = encoder()
    assert chosen_encoder({**_configuration(), "encoder_weights": str(file.path)}).sha256 == file.sha256
    assert chosen_encoder({**_configuration(), "encoder_weights": "none"}) is None


def test_environment_overrides_plans_and_trainer_overrides_both(encoder, monkeypatch):
    plans, environment = encoder("plans"), encoder("environment", drop_path=0.0)
    configuration = {**_configuration(), "encoder_weights": str(plans.path)}
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(environment.path))
    assert chosen_encoder(configuration).path == environment.path
    assert chosen_encoder(configuration, always="none") is None
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "none")
    assert chosen_encoder(configuration) is None
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "")
    assert chosen_encoder(configuration).path == plans.path


@pytest.mark.parametrize("by_environment", [True, False])
def test_missing_file_is_reported_with_the_setting(tmp_path, monkeypatch, by_environment):
    absent = str(tmp_path / "absent.safetensors")
    configuration = _configuration()
    if by_environment:
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, absent)
    else:
        configuration["encoder_weights"] = absent
    with pytest.raises(CheckpointError, match="none") as error:
        chosen_encoder(configuration)
    assert absent in str(error.value)
    assert (f"variable {ENVIRONMENT_VARIABLE} says" if by_environment else "in the plans says") in str(error.value)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"embed_dim": 48}, "embed_dim 24 in the file and 48 in the plans"),
        ({"depth": 4}, "depth 2 in the file and 4 in the plans"),
        ({"depth": [1, 1, 0]}, r"depth 2 in the file and \[1, 1, 0\] in the plans"),
        ({"decoder_dim": 32}, "decoder_dim 16 in the file and 32 in the plans"),
        ({"num_heads": [2, 4, 8]}, "num_heads"),
        ({"rotary": False}, "rotary True in the file and False in the plans"),
        ({"inter_gate": False}, "inter_gate"),
        ({"expansion": 3}, "expansion"),
    ],
)
def test_mismatch_is_reported_with_both_values(encoder, changed, message):
    configuration = {**_configuration(**changed), "encoder_weights": str(encoder().path)}
    with pytest.raises(CheckpointError, match=message) as error:
        chosen_encoder(configuration)
    assert "hrmedseg encoder distill" in str(error.value)


def test_depth_may_be_given_as_groups(encoder):
    assert chosen_encoder({**_configuration(depth=[2, 0, 0]), "encoder_weights": str(encoder().path)}) is not None


# ---- the published encoder ----


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Write the authors' file for 48 channels and select it by the environment. Return file and configuration."""
    path = write_published(tmp_path / "SAM_PFD_10K.pth")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(path))
    return path, _configuration(embed_dim=48, depth=4, decoder_dim=16)


def test_published_file_is_read_as_downloaded(published):
    path, configuration = published
    configuration["architecture"]["arch_kwargs"]["depth"] = [1, 2, 1]
    file = chosen_encoder(configuration)
    network = HRMedSeg(3, 2, **file.architecture, **DECODER)
    initialize_encoder(network, file, ["RGBTo01Normalization"] * 3)
    images = torch.rand(2, 3, 64, 64)
    expected = published_forward(published_state(), normalized(images, PUBLISHED_MEAN))
    torch.testing.assert_close(_embedding(network, images).double(), expected, rtol=0, atol=1e-4)
    assert record(file) == {"file": str(path), "sha256": file.sha256, "name": file.card["name"]}


def test_published_file_of_another_width_is_reported_with_both_values(published):
    path, configuration = published
    configuration["architecture"]["arch_kwargs"]["embed_dim"] = 96
    with pytest.raises(CheckpointError, match="embed_dim 48 in the file and 96 in the plans") as error:
        chosen_encoder(configuration)
    assert str(path) in str(error.value)


def test_complete_sam_as_encoder_is_rejected_with_advice_to_distill(tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(write_sam(tmp_path / "sam_vit_h_4b8939.pth")))
    with pytest.raises(
        CheckpointError, match="whole SAM.*hrmedseg encoder distill --teacher.*Training was to start from"
    ):
        chosen_encoder(_configuration())


# ---- an encoder on the hub ----

HUB_NAME = "hf://somebody/encoders/encoder.safetensors"


def _upload(hub, file, names=("encoder.safetensors", "encoder.json")):
    parts = (file.path, file.path.with_suffix(".json"))
    return hub.commit("somebody/encoders", {name: part.read_bytes() for name, part in zip(names, parts, strict=False)})


def _on_hub(name=HUB_NAME, **more):
    return {**_configuration(), "encoder_weights": name, **more}


def test_encoder_on_the_hub_is_recorded_with_commit_and_sha256(encoder, hub):
    local = encoder()
    commit = _upload(hub, local)
    file = chosen_encoder(_on_hub())
    assert file.sha256 == local.sha256 and file.card == local.card
    assert record(file) == {"file": HUB_NAME, "commit": commit, "sha256": local.sha256, "name": "e"}
    lines = initialize_encoder(_network(), file, [ZSCORE] * 3)
    assert lines == [f"The encoder starts from {file.source} (sha256 {local.sha256})."]
    assert file.source == f"hf://somebody/encoders@{commit}/encoder.safetensors"
    assert record(chosen_encoder(_on_hub(file.source)))["file"] == file.source


def test_environment_may_select_a_file_on_the_hub(encoder, hub, monkeypatch):
    _upload(hub, encoder())
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, HUB_NAME)
    assert chosen_encoder(_configuration()).hub.name == HUB_NAME


def test_weights_and_card_are_from_the_same_commit(encoder, hub):
    first = _upload(hub, encoder("one"))
    file = chosen_encoder(_on_hub(f"hf://somebody/encoders@{first}/encoder.safetensors"))
    _upload(hub, encoder("two", drop_path=0.0))
    assert chosen_encoder(_on_hub(file.source)).card["name"] == "one"
    assert chosen_encoder(_on_hub()).card["name"] == "two"


def test_encoder_without_its_card_is_rejected(encoder, hub):
    _upload(hub, encoder(), names=["encoder.safetensors"])
    with pytest.raises(CheckpointError, match="no file encoder.json.*two files there.*Training was to start from"):
        chosen_encoder(_on_hub())
    assert not any("safetensors" in request for request in hub.requests)  # it may be a large unrelated file


def test_published_file_may_be_on_the_hub(hub, tmp_path):
    content = write_published(tmp_path / "p.pth").read_bytes()
    commit = hub.commit("somebody/HRMedSeg", {"SAM_PFD_10K.pth": content})
    file = load_encoder("hf://somebody/HRMedSeg/SAM_PFD_10K.pth")
    assert file.source == f"hf://somebody/HRMedSeg@{commit}/SAM_PFD_10K.pth"
    assert file.card["source"]["file"] == "SAM_PFD_10K.pth"
    imported = import_encoder("hf://somebody/HRMedSeg/SAM_PFD_10K.pth", tmp_path / "encoder")
    assert imported.card["source"]["hub"] == file.source
    assert imported.card["source"]["sha256"] == file.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("where", ["plans", "other folds"])
def test_file_on_the_hub_changed_since_it_was_recorded_is_rejected(encoder, hub, tmp_path, where):
    old = _upload(hub, encoder("old"))
    recorded = record(chosen_encoder(_on_hub()))
    new = _upload(hub, encoder("new", embed_dim=24, exter_gate=False))
    architecture = _configuration(exter_gate=False)
    configuration = {**architecture, "encoder_weights": HUB_NAME}
    assert chosen_encoder(configuration).hub.commit == new
    plans = {"configurations": {"2d": {"encoder_started_from": recorded}}}
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    others = recorded_by_other_folds(tmp_path, "2d")
    assert others == recorded
    message = f"changed since it was recorded.*encoders@{old}/encoder.safetensors.*encoders@{new}/encoder.safetensors"
    with pytest.raises(CheckpointError, match=message):
        if where == "plans":
            chosen_encoder({**configuration, "encoder_started_from": recorded})
        else:
            chosen_encoder(configuration, recorded=others)
    pinned = f"hf://somebody/encoders@{new}/encoder.safetensors"
    assert chosen_encoder({**configuration, "encoder_weights": pinned}, recorded=others).hub.commit == new


def test_another_commit_with_the_same_weights_is_not_a_change(encoder, hub):
    _upload(hub, encoder())
    recorded = record(chosen_encoder(_on_hub()))
    hub.commit("somebody/encoders", {"README.md": b"more"})
    assert chosen_encoder(_on_hub(), recorded=recorded).hub.commit != recorded["commit"]


@pytest.mark.parametrize("content", [None, "{", "[]", '{"configurations": {}}', '{"configurations": {"2d": {"x": 1}}}'])
def test_nothing_is_recorded_without_other_folds(tmp_path, content):
    if content is not None:
        (tmp_path / "plans.json").write_text(content)
    assert recorded_by_other_folds(tmp_path, "2d") is None


# ---- loading into the network ----


def test_encoder_and_neck_have_exactly_the_weights_of_the_file(encoder):
    file, network = encoder(), _network()
    decoder = {name: value.clone() for name, value in network.decoder.state_dict().items()}
    lines = initialize_encoder(network, file, [ZSCORE] * 3)
    assert file.sha256 in lines[0] and len(lines) == 1
    state = network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in file.state.items())
    assert all(torch.equal(network.decoder.state_dict()[name], value) for name, value in decoder.items())


def test_neck_of_the_other_order_starts_from_random_weights(encoder):
    file, network = encoder(), _network(HERSeg)
    neck = {name: value.clone() for name, value in network.neck.state_dict().items()}
    lines = initialize_encoder(network, file, [ZSCORE] * 3)
    assert any("neck starts from random weights" in line for line in lines)
    assert all(torch.equal(network.neck.state_dict()[name], value) for name, value in neck.items())
    assert torch.equal(
        network.state_dict()["encoder.patch_embedding.proj.weight"], file.state["encoder.patch_embedding.proj.weight"]
    )


def _embedding(network, image):
    with torch.no_grad():
        return network.eval().neck(network.encoder(image))


def test_one_channel_keeps_the_response_to_a_gray_image(encoder):
    file, color, gray = encoder(), _network(), _network(channels=1)
    initialize_encoder(color, file, [ZSCORE] * 3)
    initialize_encoder(gray, file, [ZSCORE])
    image = torch.randn(2, 1, 48, 64)
    torch.testing.assert_close(
        _embedding(gray, image), _embedding(color, image.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("channels", [2, 4, 5, 6])
def test_other_channels_repeat_and_rescale(channels):
    weight = torch.randn(4, 3, 2, 2)
    adapted = adapt_channels(weight, channels)
    assert adapted.shape == (4, channels, 2, 2)
    for channel in range(channels):
        torch.testing.assert_close(adapted[:, channel] * channels / 3, weight[:, channel % 3])


def test_six_channels_with_an_image_twice_give_the_same_response(encoder):
    file, three, six = encoder(), _network(), _network(channels=6)
    initialize_encoder(three, file, [ZSCORE] * 3)
    initialize_encoder(six, file, [ZSCORE] * 6)
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(
        _embedding(six, image.repeat(1, 2, 1, 1)), _embedding(three, image), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("scheme", ["zscore", "mean_std"])
@pytest.mark.parametrize("nnunet", ["RGBTo01Normalization", "RescaleTo01Normalization"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_from_0_to_1_are_normalized_in_the_first_layer(encoder, scheme, nnunet, channels):
    file, plain, folded = encoder(scheme=scheme), _network(channels=channels), _network(channels=channels)
    initialize_encoder(plain, file, ["NoNormalization"] * channels)
    lines = initialize_encoder(folded, file, [nnunet] * channels)
    assert "folded" in lines[-1]
    image = torch.rand(2, channels, 32, 48)
    mean, std = (torch.tensor(v) for v in (MEAN, STD))
    order = [channel % 3 for channel in range(channels)]
    mean, std = (v.mean(0, keepdim=True) if channels == 1 else v[order] for v in (mean, std))
    normalized = (image - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(_embedding(folded, image), _embedding(plain, normalized), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_zscored_images_with_an_encoder_of_a_fixed_mean(encoder, channels):
    """A z-scored image with mean and deviation of natural images gives the original response of the encoder."""
    file, plain, rescaled = encoder(scheme="mean_std"), _network(channels=channels), _network(channels=channels)
    initialize_encoder(plain, file, ["NoNormalization"] * channels)
    lines = initialize_encoder(rescaled, file, [ZSCORE] * channels)
    assert "rescaled" in lines[-1] and f"channels {list(range(channels))}" in lines[-1]
    natural = [torch.tensor(IMAGENET[statistic]) for statistic in ("mean", "std")]
    mean, std, natural_mean, natural_std = (
        (value.mean(0, keepdim=True) if channels == 1 else value)[:, None, None]
        for value in (torch.tensor(MEAN), torch.tensor(STD), *natural)
    )
    zscored = torch.randn(2, channels, 32, 48)
    image = zscored * natural_std + natural_mean
    torch.testing.assert_close(
        _embedding(rescaled, zscored), _embedding(plain, (image - mean) / std), rtol=1e-3, atol=1e-3
    )
    zscore_encoder = _network(channels=channels)
    assert not any("rescaled" in line for line in initialize_encoder(zscore_encoder, encoder(), [ZSCORE] * channels))


def test_normalization_is_folded_only_for_channels_from_0_to_1():
    weight, bias = torch.randn(4, 3, 2, 2), torch.randn(4)
    before = weight.clone()
    new_weight, new_bias = fold_normalization(weight, bias, torch.tensor(MEAN), torch.tensor(STD), [1])
    assert torch.equal(weight, before)
    assert torch.equal(new_weight[:, [0, 2]], weight[:, [0, 2]])
    torch.testing.assert_close(new_weight[:, 1], weight[:, 1] / STD[1])
    torch.testing.assert_close(new_bias, bias - new_weight[:, 1].sum((1, 2)) * MEAN[1])


def test_images_without_normalization_give_a_warning(encoder):
    lines = initialize_encoder(_network(), encoder(), ["NoNormalization"] * 3)
    assert "NoNormalization" in lines[-1]


def test_record_in_the_plans_is_json(encoder):
    file = encoder()
    assert record(file) == {"file": str(file.path), "sha256": file.sha256, "name": "e"}
    assert json.loads(json.dumps(record(None))) == {"file": "none"}
