import pytest
import torch
from torch import nn

from nnunet_hrmedseg.trainers.parameter_groups import encoder_decoder_groups, split_groups_of_older_checkpoints


class Network(nn.Module):
    def __init__(self, decoder_layers=2):
        super().__init__()
        self.encoder = nn.Linear(3, 4)
        self.neck = nn.Linear(4, 4)
        self.decoder = nn.Sequential(*(nn.Linear(4, 4) for _ in range(decoder_layers)))

    def forward(self, x):
        return self.decoder(self.neck(self.encoder(x)))


class Compiled(nn.Module):
    def __init__(self, network):
        super().__init__()
        self._orig_mod = network


def _ids(parameters):
    return [id(parameter) for parameter in parameters]


@pytest.mark.parametrize("wrap", [lambda network: network, Compiled], ids=["plain", "compiled"])
def test_encoder_and_what_is_behind_it_in_the_order_of_the_parameters(wrap):
    network = Network()
    encoder, behind = encoder_decoder_groups(wrap(network), 2e-3)
    assert _ids(encoder["params"]) == _ids(network.encoder.parameters())
    assert _ids([*encoder["params"], *behind["params"]]) == _ids(network.parameters())
    assert (encoder["behind_encoder"], behind["behind_encoder"]) == (False, True)
    assert encoder["lr"] == behind["lr"] == 2e-3


def test_the_encoder_may_have_a_learning_rate_of_its_own():
    assert [group["lr"] for group in encoder_decoder_groups(Network(), 2e-3, 1e-4)] == [1e-4, 2e-3]
    assert [group["lr"] for group in encoder_decoder_groups(Network(), 2e-3, 0.0)] == [0.0, 2e-3]  # frozen


def _step(network, optimizer):
    network(torch.randn(5, 3)).square().mean().backward()
    optimizer.step()


def _new_optimizer(network):
    optimizer = torch.optim.Adam(encoder_decoder_groups(network, 1e-3), betas=(0.9, 0.95))
    split_groups_of_older_checkpoints(optimizer)
    return optimizer


def test_the_state_of_a_single_group_goes_to_the_same_parameters():
    network = Network()
    old = torch.optim.Adam(network.parameters(), lr=5e-4)
    _step(network, old)
    new = _new_optimizer(network)
    new.load_state_dict(old.state_dict())
    assert [len(group["params"]) for group in new.param_groups] == [2, 6]
    for parameter in network.parameters():
        assert torch.equal(new.state[parameter]["exp_avg"], old.state[parameter]["exp_avg"])
        assert new.state[parameter]["step"] == 1
    assert all(group["betas"] == (0.9, 0.999) for group in new.param_groups)  # it goes on as it began


def test_the_state_of_two_groups_stays_what_it_is():
    network = Network()
    first = _new_optimizer(network)
    _step(network, first)
    second = _new_optimizer(network)
    second.load_state_dict(first.state_dict())
    for parameter in network.parameters():
        assert torch.equal(second.state[parameter]["exp_avg"], first.state[parameter]["exp_avg"])
    assert [group["behind_encoder"] for group in second.param_groups] == [False, True]


def test_the_state_of_another_network_is_refused():
    other = torch.optim.Adam(Network(decoder_layers=3).parameters())
    with pytest.raises(ValueError, match="parameter group"):
        _new_optimizer(Network()).load_state_dict(other.state_dict())
