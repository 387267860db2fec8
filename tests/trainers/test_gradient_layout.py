import torch
from torch import nn

from nnunet_hrmedseg.trainers.gradient_layout import lay_out_gradients_as_weights


class OddStrides(torch.autograd.Function):
    """A 1 x 1 convolution whose gradient has the strides that cuDNN gives for channels_last."""

    @staticmethod
    def forward(ctx, weight):
        return weight.clone()

    @staticmethod
    def backward(ctx, gradient):
        channels = gradient.shape[1]
        return gradient.contiguous().as_strided(gradient.shape, (channels, 1, channels, channels))


def test_gradients_have_the_strides_of_their_weights():
    values = torch.arange(8.0).view(4, 2, 1, 1)
    gradients = []
    for laid_out in (False, True):
        network = nn.Conv2d(2, 4, 1, bias=False)
        if laid_out:
            lay_out_gradients_as_weights(network)
        (OddStrides.apply(network.weight) * values).sum().backward()
        gradients.append(network.weight.grad)
    plain, laid_out = gradients
    assert plain.stride() == (2, 1, 2, 2) and laid_out.stride() == network.weight.stride() == (2, 1, 1, 1)
    assert torch.equal(laid_out, values) and torch.equal(plain, laid_out)


def test_values_are_kept_if_strides_matter():
    network = nn.Conv2d(2, 1, 3)
    lay_out_gradients_as_weights(network)
    image = torch.randn(1, 2, 5, 5).contiguous(memory_format=torch.channels_last)
    network(image).square().sum().backward()
    other = nn.Conv2d(2, 1, 3)
    other.load_state_dict(network.state_dict())
    other(image).square().sum().backward()
    assert torch.equal(network.weight.grad, other.weight.grad)
