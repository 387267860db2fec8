"""The assembled networks: shapes, gradients, errors, and the interface that nnU-Net and pretraining tools expect."""

from __future__ import annotations

import json

import pytest
import torch
from dynamic_network_architectures.architectures.abstract_arch import test_submodules_loadable as submodules_loadable
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_hrmedseg.architectures import HERSeg, HRMedSeg, LGViT
from nnunet_hrmedseg.architectures.lgvit import fitting_heads, group_depths

SMALL = {"embed_dim": 24, "depth": 3, "decoder_dim": 32, "decoder_heads": 2, "decoder_mlp_dim": 32}


def small(network=HRMedSeg, channels: int = 3, classes: int = 2, **arguments) -> HRMedSeg:
    torch.manual_seed(0)
    return network(channels, classes, **{**SMALL, **arguments})


@pytest.mark.parametrize("network", [HRMedSeg, HERSeg])
@pytest.mark.parametrize(
    "channels, classes, batch, size",
    [(3, 2, 2, (32, 32)), (1, 1, 1, (16, 16)), (5, 7, 3, (64, 32)), (1, 2, 2, (48, 112))],
)
def test_shapes(network, channels, classes, batch, size):
    net = small(network, channels, classes).eval()  # batch normalization cannot train on one token
    image = torch.randn(batch, channels, *size)
    logits = net(image)
    assert logits.shape == (batch, classes, *size)
    assert logits.dtype == torch.float32
    assert net.encoder(image).shape == (batch, 24, size[0] // 16, size[1] // 16)


@pytest.mark.parametrize("network", [HRMedSeg, HERSeg])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"class_mlp": "per_class"},
        {"inter_gate": False, "exter_gate": False, "rotary": False, "multiscale_pooling": False},
        {"depth": 0},
        {"channel_interactive_layers": 0, "depth": [1, 0, 2], "drop_path": 0.0, "pool_sizes": [3]},
    ],
)
def test_gradients_reach_every_parameter(network, arguments):
    net = small(network, **{"drop_path": 0.0, **arguments})
    for layer in net.encoder.channel_interactive:
        torch.nn.init.ones_(layer.project[-1].weight)  # starts at 0, which blocks gradients
    net(torch.randn(2, 3, 32, 48)).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A constant added to all keys of a softmax changes nothing.
        if not name.endswith(".key.bias"):
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("network", [HRMedSeg, HERSeg])
def test_evaluation_is_deterministic_and_independent_per_image(network):
    net = small(network).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        logits = net(images)
        assert torch.equal(logits, net(images))
        torch.testing.assert_close(net(images[1:2]), logits[1:2], rtol=1e-4, atol=1e-5)


def test_drop_path_acts_only_in_training():
    net = small(drop_path=0.9, depth=4)
    assert [layer.drop_path.rate for layer in net.encoder.token_interactive] == pytest.approx([0, 0.3, 0.6, 0.9])
    images = torch.randn(1, 3, 32, 32).expand(8, -1, -1, -1)
    with torch.no_grad():
        differences = net.train()(images).std(dim=0).max()
        assert differences > 1e-3
        assert net.eval()(images).std(dim=0).max() < 1e-5
    with pytest.raises(ValueError, match="stochastic depth"):
        small(drop_path=1.0)


@pytest.mark.parametrize("network", [HRMedSeg, HERSeg])
@pytest.mark.parametrize("class_mlp", ["shared", "per_class"])
def test_state_dict_round_trip(network, class_mlp, tmp_path):
    source, target = small(network, class_mlp=class_mlp).eval(), small(network, class_mlp=class_mlp).eval()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    target.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(source(image), target(image))


@pytest.mark.parametrize("size", [(32, 40), (17, 32), (8, 8)])
def test_size_must_be_a_multiple_of_16(size):
    with pytest.raises(ValueError, match=rf"multiples of 16, got {size[0]} x {size[1]}"):
        small()(torch.zeros(1, 3, *size))


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (3, 32, 32)])
def test_wrong_number_of_channels_is_rejected(shape):
    with pytest.raises(ValueError, match=r"images of shape \(B, 3, H, W\), got"):
        small()(torch.zeros(shape))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"deep_supervision": True}, "no deep supervision"),
        ({"embed_dim": 30}, "embed_dim must be a positive multiple of 4, got 30"),
        ({"depth": -1}, "depth must be 0 or more, got -1"),
        ({"depth": [2, 2]}, "sizes of three groups"),
        ({"num_heads": [6, 12]}, "one entry for each of 3 groups"),
        ({"channel_interactive_layers": -1}, "0 or more, got -1"),
        ({"neck": "5x5"}, "neck must be one of"),
    ],
)
def test_invalid_arguments_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


@pytest.mark.parametrize(
    "depth, groups",
    [
        (0, (0, 0, 0)),
        (1, (1, 0, 0)),
        (3, (2, 0, 1)),
        (4, (2, 0, 2)),
        (10, (2, 6, 2)),
        (16, (2, 12, 2)),
        ([1, 2, 3], (1, 2, 3)),
    ],
)
def test_depth_of_groups(depth, groups):
    assert group_depths(depth) == groups


@pytest.mark.parametrize(
    "channels, heads", [(24, (6, 12, 12)), (48, (6, 12, 24)), (96, (6, 12, 24)), (384, (6, 12, 24)), (64, (4, 8, 16))]
)
def test_number_of_heads(channels, heads):
    assert tuple(fitting_heads(channels, wanted) for wanted in (6, 12, 24)) == heads
    encoder = LGViT(1, channels, [1, 1, 1])
    assert tuple(layer.attention.num_heads for layer in encoder.token_interactive) == heads


@pytest.mark.parametrize("name", ["HRMedSeg", "HERSeg"])
def test_nnunet_builds_the_network_from_plans(name):
    arguments = json.loads(json.dumps({**SMALL, "depth": [1, 1, 1], "pool_sizes": (5, 9), "drop_path": 0.1}))
    path = f"nnunet_hrmedseg.architectures.{name}"
    net = get_network_from_plans(path, arguments, [], 3, 4, allow_init=True, deep_supervision=False)
    assert type(net).__name__ == name
    assert not hasattr(net, "initialize")
    net.decoder.deep_supervision = False  # as nnUNetTrainer.set_deep_supervision_enabled does
    assert net(torch.zeros(2, 3, 16, 16)).shape == (2, 4, 16, 16)
    with pytest.raises(ValueError, match="deep_supervision=True"):
        get_network_from_plans(path, arguments, [], 3, 4, deep_supervision=True)


@pytest.mark.parametrize("network", [HRMedSeg, HERSeg])
@pytest.mark.parametrize("class_mlp", ["shared", "per_class"])
def test_loads_pretrained_weights_with_other_classes(network, class_mlp, tmp_path):
    pretrained = network(3, 4, class_mlp=class_mlp, **SMALL)
    net = network(3, 2, class_mlp=class_mlp, **SMALL)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    torch.save({"network_weights": pretrained.state_dict()}, tmp_path / "checkpoint_final.pth")
    load_pretrained_weights(net, str(tmp_path / "checkpoint_final.pth"))

    other_shape = {key for key, value in pretrained.state_dict().items() if value.shape != before[key].shape}
    assert other_shape == {key for key in before if key.startswith("decoder.seg_layers.")}
    for key, value in net.state_dict().items():
        source = before if key in other_shape else pretrained.state_dict()
        assert torch.equal(value, source[key]), key


@pytest.mark.parametrize("network", [HRMedSeg, HERSeg])
def test_loads_keys_of_pretraining_frameworks(network):
    net = small(network, channels=5)
    submodules_loadable(net)
    assert net.get_submodule(net.key_to_encoder) is net.encoder
    assert net.get_submodule(net.key_to_stem) is net.encoder.patch_embedding
    assert net.key_to_lpe is None
    other = small(network, channels=3).state_dict()
    depends_on_input = {key for key, value in net.state_dict().items() if value.shape != other[key].shape}
    assert depends_on_input == {f"{key}.weight" for key in net.keys_to_in_proj}
    assert all(key.startswith(f"{net.key_to_stem}.") for key in depends_on_input)
