"""The bundled encoder: its size, its card, its features, and networks that start from it."""

from functools import lru_cache

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d

from nnunet_hrmedseg.architectures import HERSeg, HRMedSeg, lgvit
from nnunet_hrmedseg.architectures.rotary import grid_rotation
from nnunet_hrmedseg.demo.dataset import PACKAGED
from nnunet_hrmedseg.plans.overrides import hrmedseg_plans
from nnunet_hrmedseg.trainers.initialization import chosen_encoder, initialize_encoder
from nnunet_hrmedseg.weights import BUNDLED, load_encoder
from nnunet_hrmedseg.weights.student import Normalize, Student
from tests.plans.stock_plans import stock_plans

ZSCORE = "ZScoreNormalization"


def test_size_and_card():
    assert BUNDLED.stat().st_size <= 8e6
    card = load_encoder(BUNDLED).card
    for what in ("name", "made_by", "data", "licenses", "recipe", "hardware", "losses", "versions", "date", "sha256"):
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


# ---- features --------------------------------------------------------------------------------------------------------


def bundled(**changed):
    file = load_encoder(BUNDLED)
    student = Student({**file.architecture, **changed}).eval()
    student.load_state_dict(file.state)
    return student


@lru_cache
def demo_images(part, side=256):
    """Return images (B, 3, side, side) in 0..1, and the fraction of nucleus in each pixel of the grid, (B, 1, h, w)."""
    images, shares = [], []
    for file in sorted((PACKAGED / part / "images").glob("*.jpg")):
        label = Image.open(PACKAGED / part / "labels" / f"{file.stem}.png").resize(
            (side, side), Image.Resampling.NEAREST
        )
        image = Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
        images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)
        shares.append(torch.from_numpy(np.array(label) > 0)[None].float())
    return torch.stack(images), avg_pool2d(torch.stack(shares), 16)


@torch.no_grad()
def unexplained(student):
    """Return the fraction of the variance of the nucleus fraction on held-out images that a linear map of the features,
    fitted to the other images, does not explain."""
    features, shares = {}, {}
    for part in ("train", "held_out"):
        images, share = demo_images(part)
        embedding = torch.cat([student(image[None]) for image in Normalize("zscore")(images)])
        features[part], shares[part] = embedding.movedim(1, -1).flatten(0, 2).double(), share.flatten().double()
    std, mean = torch.std_mean(features["train"], 0)
    x, x_new = ((features[part] - mean) / (std + 1e-6) for part in ("train", "held_out"))
    level = shares["train"].mean()
    ridge = 0.01 * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(x.T @ x + ridge, x.T @ (shares["train"] - level))
    return ((x_new @ weight + level - shares["held_out"]).square().mean() / shares["held_out"].var()).item()


@pytest.mark.slow
def test_features_distinguish_nuclei_from_background():
    """Measured on images not used in training. Random weights explain some of the variance, but far less."""
    torch.manual_seed(0)
    of_random_weights = unexplained(Student(load_encoder(BUNDLED).architecture).eval())
    of_the_bundled = unexplained(bundled())
    assert of_the_bundled < 0.2  # 0.15 when the test was written, and 0.36 to 0.38 for three random networks
    assert of_the_bundled < 0.6 * of_random_weights


EMBEDDING = {  # channel, row, column: value when the test was written
    (0, 0, 0): 0.0904,
    (21, 5, 7): -0.0523,
    (42, 4, 4): 0.9702,
    (63, 3, 1): 1.2083,
    (84, 2, 8): 0.3768,
    (105, 1, 5): 0.7582,
    (126, 0, 2): 0.2915,
    (147, 5, 9): -0.2264,
    (168, 4, 6): -0.2552,
    (189, 3, 3): 0.0194,
    (210, 2, 0): 0.1362,
    (231, 1, 7): 0.4326,
}


@torch.no_grad()
def computes_the_same(student):
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(160.0), indexing="ij")
    image = torch.stack([torch.sin(x / 9 + y / 23), torch.sin(y / 7 - x / 31), torch.sin(x * y / 600)])
    embedding = student(image[None])[0]
    found = torch.stack([embedding[place] for place in EMBEDDING])
    return torch.allclose(found, torch.tensor([*EMBEDDING.values()]), rtol=1e-3, atol=1e-3)


def test_embedding_equals_that_of_the_original_network():
    """The weights belong to one network: a changed network would load them and give other features."""
    assert computes_the_same(bundled())


def rows_and_columns_swapped(grid, channels, **options):
    return grid_rotation(grid[::-1], channels, **options)


def mlp_first(self, x, grid, rotation):
    x = x + self.mlp(self.norm2(x))
    return x + self.attention(self.norm1(x), grid, rotation)


def test_changed_network_is_detected(monkeypatch):
    assert not computes_the_same(bundled(rotary=False))
    with monkeypatch.context() as patch:
        patch.setattr(lgvit, "grid_rotation", rows_and_columns_swapped)
        assert not computes_the_same(bundled())
    monkeypatch.setattr(lgvit.TokenInteractiveLayer, "forward", mlp_first)
    assert not computes_the_same(bundled())
