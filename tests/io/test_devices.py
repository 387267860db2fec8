"""Forward pass and loss of all networks on CUDA without a GPU: no operator mixes devices."""

import pytest
import torch
from torch import nn

from nnunet_hrmedseg.architectures import HERSeg, HRMedSeg, SegMaFormer
from nnunet_hrmedseg.evaluation.benchmark.networks import nnunet_loss
from nnunet_hrmedseg.trainers.losses import dice_and_cross_entropy, dice_and_focal
from tests.fake_cuda import NoMixedDevices, fake_cuda

SMALL = {"embed_dim": 24, "depth": 3}
KINDS = {
    "labels": {"regions": False},
    "labels with ignored": {"regions": False, "ignore_label": 3},
    "regions": {"regions": True},
    "regions with ignored": {"regions": True, "ignore_label": 3},
}


def _target(kind, side):
    heads = 3 if kind["regions"] else 1
    return torch.zeros(2, heads + (kind["regions"] and "ignore_label" in kind), side, side, dtype=torch.int16)


def _forward(network, loss, image, target, autocast):
    with torch.autocast("cuda", enabled=autocast):
        assert loss(network(image), target).device.type == "cuda"


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "float32"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("network, make_loss", [(HRMedSeg, dice_and_focal), (HERSeg, dice_and_cross_entropy)])
def test_forward_pass_and_loss_stay_on_their_device(network, make_loss, recompute, autocast):
    with fake_cuda(), NoMixedDevices() as mode:
        built = network(3, 3, recompute=recompute, **SMALL).train()
        built.upsample_in_training = False
        for kind in KINDS.values():
            _forward(
                built, make_loss(recompute=recompute, **kind), torch.empty(2, 3, 64, 64), _target(kind, 64), autocast
            )
        assert mode.operators > 500


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"class_mlp": "per_class"}, {"multiscale_pooling": False}, {"rotary": False}])
def test_options_stay_on_their_device(options):
    with fake_cuda(), NoMixedDevices():
        built = HRMedSeg(3, 3, **SMALL, **options).train()
        built.upsample_in_training = False
        _forward(built, dice_and_focal(regions=False), torch.empty(2, 3, 64, 64), _target(KINDS["labels"], 64), True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("network", [HRMedSeg, HERSeg])
def test_validation_and_prediction_stay_on_their_device(network, kind):
    with fake_cuda(), NoMixedDevices(), torch.no_grad(), torch.autocast("cuda"):
        built = network(3, 3, **SMALL).eval()
        image = torch.empty(2, 3, 64, 64)
        assert built(image).device.type == "cuda"
        loss, counts = dice_and_focal(**kind).with_counts(built.quarter_logits(image), _target(kind, 64))
        assert loss.device.type == counts.device.type == "cuda"


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "float32"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_network_for_volumes_stays_on_its_device(recompute, autocast):
    with fake_cuda(), NoMixedDevices() as mode:
        built = SegMaFormer(1, 3, recompute=recompute).train()
        _forward(built, nnunet_loss(), torch.empty(1, 1, 32, 32, 36), torch.zeros(1, 1, 32, 32, 36), autocast)
        assert mode.operators > 100


def test_buffer_left_on_the_cpu_is_detected():
    class WithCpuBuffer(nn.Module):
        def forward(self, x):
            return x * torch.ones(3, device="cpu")

    with fake_cuda(), pytest.raises((AssertionError, RuntimeError), match="device"), NoMixedDevices():
        WithCpuBuffer()(torch.empty(2, 3))
