"""The encoder that travels with the package: its size, its card, and that the default network starts from it."""

import torch

from nnunet_hrmedseg.architectures import HERSeg, HRMedSeg
from nnunet_hrmedseg.plans.overrides import hrmedseg_plans
from nnunet_hrmedseg.trainers.initialization import chosen_encoder, initialize_encoder
from nnunet_hrmedseg.weights import BUNDLED, read_encoder
from tests.plans.stock_plans import stock_plans

ZSCORE = "ZScoreNormalization"


def test_size_and_card():
    assert BUNDLED.stat().st_size <= 8e6
    card = read_encoder(BUNDLED).card
    for what in ("name", "made_by", "data", "licences", "recipe", "hardware", "losses", "versions", "date", "sha256"):
        assert card[what], what
    assert card["data"]["training_images"] > 1000
    assert "SAM" not in BUNDLED.with_suffix(".json").read_text()


def test_both_networks_start_from_it_by_default():
    for network, cls in (("HRMedSeg", HRMedSeg), ("HERSeg", HERSeg)):
        plans = hrmedseg_plans(stock_plans(), num_training_cases=5, network=network)
        file = chosen_encoder(plans["configurations"]["2d"])
        assert file.path == BUNDLED
        built = cls(3, 2, **plans["configurations"]["2d"]["architecture"]["arch_kwargs"])
        initialize_encoder(built, file, [ZSCORE] * 3)
        state = built.state_dict()
        loaded = [name for name, value in file.state.items() if torch.equal(state[name], value)]
        expected = [name for name in file.state if cls is HRMedSeg or name.startswith("encoder.")]
        assert set(loaded) >= set(expected)


def test_its_numbers_are_those_of_a_trained_network():
    """No value is wild, and features differ from place to place and from image to image."""
    file = read_encoder(BUNDLED)
    assert all(torch.isfinite(value).all() for value in file.state.values())
    network = HRMedSeg(3, 2)
    initialize_encoder(network, file, [ZSCORE] * 3)
    torch.manual_seed(0)
    with torch.no_grad():
        embedding = network.eval().neck(network.encoder(torch.randn(2, 3, 128, 128)))
    assert 0.1 < embedding.std() < 10
    assert embedding.std((2, 3)).mean() > 0.05
