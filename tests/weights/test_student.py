import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ZScoreNormalization

from nnunet_hrmedseg.architectures import HRMedSeg
from nnunet_hrmedseg.errors import CheckpointError
from nnunet_hrmedseg.plans.specs import NETWORKS
from nnunet_hrmedseg.weights import write_encoder
from nnunet_hrmedseg.weights.student import Normalize, Student, encoder_architecture, load_student_weights

TINY = {"embed_dim": 24, "depth": 2, "decoder_dim": 16}


@pytest.mark.parametrize("network", ["HRMedSeg", "HERSeg"])
def test_student_has_the_encoder_and_neck_of_the_network(network):
    architecture = encoder_architecture(network)
    whole = HRMedSeg(3, 2, **NETWORKS[network].arguments)
    student = Student(architecture)
    expected = {n: v.shape for n, v in whole.state_dict().items() if n.startswith(("encoder.", "neck."))}
    assert {n: v.shape for n, v in student.state_dict().items()} == expected


def test_shape_of_the_embedding():
    assert Student(encoder_architecture(**TINY))(torch.rand(2, 3, 32, 48)).shape == (2, 16, 2, 3)


def test_zscore_equals_that_of_nnunet():
    image = np.random.default_rng(0).uniform(0, 1, (3, 20, 30)).astype(np.float32)
    expected = np.stack([ZScoreNormalization(False, {}).run(c.copy(), None) for c in image])
    np.testing.assert_allclose(Normalize("zscore")(torch.from_numpy(image)[None])[0], expected, atol=1e-5)
    assert torch.equal(Normalize("zscore")(torch.full((1, 3, 4, 4), 0.5)), torch.zeros(1, 3, 4, 4))


def test_normalization_by_mean_and_std():
    image = torch.rand(2, 3, 4, 4)
    found = Normalize("mean_std", (0.1, 0.2, 0.3), (1.0, 2.0, 4.0))(image)
    torch.testing.assert_close(found[:, 2], (image[:, 2] - 0.3) / 4)
    with pytest.raises(ValueError, match="scheme"):
        Normalize("other")


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(3)
    architecture = encoder_architecture(**TINY)
    card = {"architecture": architecture, "normalization": Normalize("zscore").card()}
    return write_encoder(tmp_path / "e.safetensors", Student(architecture).state_dict(), card)


def test_student_starts_from_a_file(encoder):
    architecture = encoder_architecture(**TINY)
    student = Student(architecture)
    assert load_student_weights(student, str(encoder.path), architecture, Normalize("zscore")).sha256 == encoder.sha256
    assert all(torch.equal(value, encoder.state[name]) for name, value in student.state_dict().items())
    network = HRMedSeg(3, 2, decoder_heads=2, decoder_mlp_dim=16, **architecture)
    load_student_weights(network, str(encoder.path), architecture, Normalize("zscore"))
    assert all(torch.equal(network.state_dict()[name], value) for name, value in encoder.state.items())


def test_student_normalizes_as_the_file_it_starts_from(tmp_path):
    architecture, divisor = encoder_architecture(**TINY), (0.485, 0.456, 0.406)
    card = {"architecture": architecture, "normalization": Normalize("mean_std", std=divisor).card()}
    path = write_encoder(tmp_path / "e.safetensors", Student(architecture).state_dict(), card).path
    normalize = Normalize("mean_std")
    load_student_weights(Student(architecture), str(path), architecture, normalize)
    assert normalize.card() == card["normalization"]


@pytest.mark.parametrize(
    "changed, scheme, message",
    [
        ({"depth": 3}, "zscore", "depth 2 in the file and 3 here"),
        ({"neck": "3x3_1x1"}, "zscore", "neck 1x1_3x3 in the file and 3x3_1x1 here"),
        ({}, "mean_std", "normalization zscore in the file and mean_std here"),
    ],
)
def test_mismatched_file_is_rejected(encoder, changed, scheme, message):
    architecture = encoder_architecture(**{**TINY, **changed})
    with pytest.raises(CheckpointError, match=message):
        load_student_weights(Student(architecture), str(encoder.path), architecture, Normalize(scheme))
