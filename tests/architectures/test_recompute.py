"""Recomputation in the backward pass: the same training step with a fraction of the memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from nnunet_hrmedseg.architectures import HERSeg, HRMedSeg
from nnunet_hrmedseg.architectures.lgvit import LGViT
from nnunet_hrmedseg.architectures.recompute import recomputed
from nnunet_hrmedseg.evaluation.benchmark.memory import saved_activation_bytes
from nnunet_hrmedseg.trainers.losses import dice_and_focal

MIB = 2**20


def step(network: nn.Module, image, target, loss) -> torch.Tensor:
    torch.manual_seed(7)  # for stochastic depth
    value = loss(network(image), target)
    value.backward()
    return value


@pytest.mark.parametrize("network", [HRMedSeg, HERSeg])
@pytest.mark.parametrize("options", [{}, {"class_mlp": "per_class", "multiscale_pooling": False, "depth": 4}], ids=str)
def test_step_with_recomputation_is_the_same(network, options):
    image, target = torch.randn(2, 3, 64, 96), torch.randint(0, 3, (2, 1, 64, 96))
    networks = []
    for recompute in (False, True):
        torch.manual_seed(0)
        networks.append(network(3, 3, embed_dim=24, drop_path=0.3, recompute=recompute, **options))
    plain, recomputing = networks
    for layer in plain.encoder.channel_interactive:
        nn.init.ones_(layer.project[-1].weight)  # starts at 0, which blocks gradients
    recomputing.load_state_dict(plain.state_dict())
    recomputing.upsample_in_training = False
    loss = dice_and_focal(regions=False)

    torch.testing.assert_close(step(recomputing, image, target, loss), step(plain, image, target, loss))
    for (name, expected), parameter in zip(plain.named_parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, msg=lambda text, name=name: f"{name}: {text}")
    for name, value in plain.state_dict().items():  # running statistics and their counter among them
        torch.testing.assert_close(recomputing.state_dict()[name], value, msg=lambda text, name=name: f"{name}: {text}")

    plain.eval(), recomputing.eval()
    with torch.no_grad():
        torch.testing.assert_close(recomputing(image), plain(image), rtol=0, atol=0)


@pytest.mark.parametrize("network", [HRMedSeg, HERSeg])
def test_activation_checkpointing_can_be_switched_after_construction(network):
    image, target = torch.randn(1, 3, 64, 64), torch.randint(0, 2, (1, 1, 64, 64))
    net, built = network(3, 2, embed_dim=24, depth=4), network(3, 2, embed_dim=24, depth=4, recompute=True)
    for each in (net, built):
        each.upsample_in_training = False

    def saved(each):
        return saved_activation_bytes(each, dice_and_focal(regions=False), image, target)

    kept = saved(net)
    net.set_activation_checkpointing()
    assert saved(net) == saved(built) < 0.6 * kept
    net.set_activation_checkpointing(False)
    assert saved(net) == kept


@pytest.mark.slow
@pytest.mark.parametrize("classes, limit", [(2, 64), (14, 96)])
def test_bytes_kept_for_an_image_of_1024_x_1024(classes, limit):
    network = HRMedSeg(3, classes, recompute=True)
    network.upsample_in_training = False
    image = torch.rand(1, 3, 1024, 1024)
    target = torch.randint(0, classes, (1, 1, 1024, 1024), dtype=torch.int16)
    kept = saved_activation_bytes(network, dice_and_focal(regions=False), image, target)
    assert 40 * MIB < kept <= limit * MIB  # below the lower limit the count would be wrong


def test_nothing_is_recomputed_without_gradients():
    calls = []
    with torch.no_grad():
        assert recomputed(lambda x: calls.append(x) or x + 1, torch.zeros(1)) == 1
    assert len(calls) == 1


def test_disabled_recomputation_is_a_plain_call():
    calls = []
    x = torch.ones(1, requires_grad=True)
    recomputed(lambda x: calls.append(x) or x.exp(), x, enabled=False).backward()
    assert len(calls) == 1


# ---- running statistics ----


class WithGraphBreak(nn.BatchNorm2d):
    """A batch normalization that the compiler cannot trace."""

    def forward(self, x):
        torch._dynamo.graph_break()
        return super().forward(x)


class Synchronized(nn.SyncBatchNorm):
    """SyncBatchNorm in one process on a CPU, which torch rejects; with the check that fails without a counter."""

    def forward(self, x):
        assert self.num_batches_tracked is not None
        torch._dynamo.graph_break()
        return nn.BatchNorm2d.forward(self, x)

    def _check_input_dim(self, x):
        assert x.ndim == 4


def _encoder(norm, recompute=False):
    torch.manual_seed(0)
    encoder = LGViT(1, 8, 1, channel_interactive_layers=1, drop_path=0.0)
    encoder.set_activation_checkpointing(recompute)
    for layer in encoder.channel_interactive:
        nn.init.ones_(layer.project[-1].weight)
        for part in (layer.expand, layer.depthwise, layer.project):
            part[1] = _as(norm, part[1])
    return encoder


def _as(norm, module):
    other = norm(module.num_features, momentum=module.momentum)
    other.load_state_dict(module.state_dict())
    return other


def _trained(encoder, network, steps=2):
    """Return the state after some forward and backward passes, and the last gradients."""
    torch.manual_seed(1)
    for _ in range(steps):
        encoder.zero_grad()
        network(torch.randn(2, 1, 32, 48)).square().mean().backward()
    return encoder.state_dict(), {name: parameter.grad for name, parameter in encoder.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    "norm, momentum", [(nn.BatchNorm2d, 0.1), (nn.BatchNorm2d, None), (WithGraphBreak, 0.1), (Synchronized, 0.1)]
)
def test_running_statistics_are_updated_once(norm, momentum, compiled):
    plain = _encoder(nn.BatchNorm2d)
    encoder = _encoder(norm, recompute=True)
    for module in (*plain.modules(), *encoder.modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = momentum
    torch._dynamo.reset()
    network = torch.compile(encoder, backend="aot_eager") if compiled else encoder
    expected, found = _trained(plain, plain), _trained(encoder, network)
    assert expected[0]["channel_interactive.0.expand.1.num_batches_tracked"] == 2
    for of_plain, of_recomputed in zip(expected, found, strict=True):
        for name, value in of_plain.items():
            torch.testing.assert_close(of_recomputed[name], value, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("norm, graphs", [(nn.BatchNorm2d, 1), (Synchronized, 3)])
def test_norms_split_the_encoder_into_few_graphs(norm, graphs, recompute):
    """The patch embedding, all token-interactive layers, and the rest: each is one graph."""
    encoder = _encoder(norm, recompute=recompute)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    network = torch.compile(nn.Sequential(encoder, nn.Conv2d(8, 2, 1)), backend=counter)
    network(torch.randn(2, 1, 32, 48)).square().mean().backward()
    assert 1 <= counter.frame_count <= graphs
