from torch import nn

from nnunet_hrmedseg.trainers.parameter_groups import encoder_decoder_groups


class Network(nn.Module):
    def __init__(self, decoder_layers=2):
        super().__init__()
        self.encoder = nn.Linear(3, 4)
        self.neck = nn.Linear(4, 4)
        self.decoder = nn.Sequential(*(nn.Linear(4, 4) for _ in range(decoder_layers)))

    def forward(self, x):
        return self.decoder(self.neck(self.encoder(x)))


def _ids(parameters):
    return [id(parameter) for parameter in parameters]


def test_groups_keep_the_order_of_the_parameters():
    network = Network()
    encoder, decoder = encoder_decoder_groups(network, 2e-3)
    assert _ids(encoder["params"]) == _ids(network.encoder.parameters())
    assert _ids([*encoder["params"], *decoder["params"]]) == _ids(network.parameters())
    assert (encoder["decoder"], decoder["decoder"]) == (False, True)
    assert encoder["lr"] == decoder["lr"] == 2e-3


def test_encoder_can_have_its_own_learning_rate():
    assert [group["lr"] for group in encoder_decoder_groups(Network(), 2e-3, 1e-4)] == [1e-4, 2e-3]
    assert [group["lr"] for group in encoder_decoder_groups(Network(), 2e-3, 0.0)] == [0.0, 2e-3]  # frozen
