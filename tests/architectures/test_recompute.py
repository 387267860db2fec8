"""Recomputation in the backward pass: the same training step, in a fraction of the memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunet_hrmedseg.architectures import HERSeg, HRMedSeg
from nnunet_hrmedseg.architectures.recompute import recomputed
from nnunet_hrmedseg.benchmark.memory import kept_for_backward
from nnunet_hrmedseg.trainers.losses import dice_and_focal

MIB = 2**20


def step(network: nn.Module, image, target, loss) -> torch.Tensor:
    torch.manual_seed(7)  # for stochastic depth
    value = loss(network(image), target)
    value.backward()
    return value


@pytest.mark.parametrize("network", [HRMedSeg, HERSeg])
@pytest.mark.parametrize("options", [{}, {"class_mlp": "per_class", "multiscale_pooling": False, "depth": 4}], ids=str)
def test_the_same_step(network, options):
    image, target = torch.randn(2, 3, 64, 96), torch.randint(0, 3, (2, 1, 64, 96))
    networks = []
    for recompute in (False, True):
        torch.manual_seed(0)
        networks.append(network(3, 3, embed_dim=24, drop_path=0.3, recompute=recompute, **options))
    plain, frugal = networks
    for layer in plain.encoder.channel_interactive:
        nn.init.ones_(layer.project[-1].weight)  # starts at 0, which holds gradients back
    frugal.load_state_dict(plain.state_dict())
    frugal.upsample_in_training = False
    loss = dice_and_focal(regions=False)

    torch.testing.assert_close(step(frugal, image, target, loss), step(plain, image, target, loss))
    for (name, expected), parameter in zip(plain.named_parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, msg=lambda text, name=name: f"{name}: {text}")
    for name, value in plain.state_dict().items():  # running statistics and their counter among them
        torch.testing.assert_close(frugal.state_dict()[name], value, msg=lambda text, name=name: f"{name}: {text}")

    plain.eval(), frugal.eval()
    with torch.no_grad():
        torch.testing.assert_close(frugal(image), plain(image), rtol=0, atol=0)


@pytest.mark.parametrize("classes, limit", [(2, 64), (14, 96)])
def test_bytes_kept_for_an_image_of_1024_x_1024(classes, limit):
    network = HRMedSeg(3, classes, recompute=True)
    network.upsample_in_training = False
    image = torch.rand(1, 3, 1024, 1024)
    target = torch.randint(0, classes, (1, 1, 1024, 1024), dtype=torch.int16)
    kept = kept_for_backward(network, dice_and_focal(regions=False), image, target)
    assert 40 * MIB < kept <= limit * MIB  # below the lower limit the count would be wrong


def test_without_gradients_nothing_is_recomputed():
    calls = []
    with torch.no_grad():
        assert recomputed(lambda x: calls.append(x) or x + 1, torch.zeros(1)) == 1
    assert len(calls) == 1


def test_switched_off_it_is_the_plain_call():
    calls = []
    x = torch.ones(1, requires_grad=True)
    recomputed(lambda x: calls.append(x) or x.exp(), x, enabled=False).backward()
    assert len(calls) == 1
