"""LGViT and its two kinds of layers, compared with their definitions."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from nnunet_hrmedseg.architectures import LGViT
from nnunet_hrmedseg.architectures.lgvit import ChannelInteractiveLayer, TokenInteractiveLayer
from nnunet_hrmedseg.architectures.rotary import grid_rotation


def with_random_norms(module: nn.Module) -> nn.Module:
    """Return the module in float64 and evaluation mode, with random weights, biases and statistics in every norm."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.normal_(norm.weight, 1, 0.3)
            nn.init.normal_(norm.bias)
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return module.double().eval()


def test_channel_interactive_layer_follows_equation_1():
    layer = with_random_norms(ChannelInteractiveLayer(8, 2))
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    (conv, conv_norm, _), (depthwise, depthwise_norm, _), (project, project_norm) = (
        layer.expand,
        layer.depthwise,
        layer.project,
    )
    inner = F.gelu(conv_norm(conv(x)))
    inner = F.gelu(depthwise_norm(depthwise(inner)))
    torch.testing.assert_close(layer(x), F.gelu(project_norm(project(inner)) + x))


def test_token_interactive_layer_applies_attention_then_mlp():
    layer = TokenInteractiveLayer(8, 2, 2, inter_gate=True, exter_gate=True, drop_path=0.5)
    layer = with_random_norms(layer)
    x, grid, rotation = torch.randn(2, 15, 8, dtype=torch.float64), (3, 5), grid_rotation((3, 5), 8)
    attended = x + layer.attention(layer.norm1(x), grid, rotation)
    expand, _, contract = layer.mlp
    expected = attended + contract(F.gelu(expand(layer.norm2(attended))))
    torch.testing.assert_close(layer(x, grid, rotation), expected)


def test_encoder_applies_its_layers_in_order_with_rotary_positions():
    encoder = LGViT(3, 16, [1, 1, 1], num_heads=(1, 2, 4), rotary=True)
    encoder = with_random_norms(encoder)
    image = torch.randn(2, 3, 32, 80, dtype=torch.float64)
    x = encoder.patch_embedding.proj(image)
    for layer in encoder.channel_interactive:
        x = layer(x)
    tokens = x.flatten(2).transpose(1, 2)
    assert len(encoder.channel_interactive) == 2 and len(encoder.token_interactive) == 3
    for layer in encoder.token_interactive:
        tokens = layer(tokens, (2, 5), grid_rotation((2, 5), 16))
    torch.testing.assert_close(encoder(image), tokens.transpose(1, 2).unflatten(2, (2, 5)))
