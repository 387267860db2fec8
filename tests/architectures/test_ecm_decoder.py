"""The decoder: symmetry of the classes, multi-scale pooling, class MLPs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nnunet_hrmedseg.architectures import ECMDecoder
from nnunet_hrmedseg.architectures.ecm_decoder import PerClassLinear, PerClassMlp
from nnunet_hrmedseg.architectures.multiscale_pooling import MultiscalePooling, sum_of_pools
from nnunet_hrmedseg.architectures.two_way_transformer import Attention, RandomFourierEncoding, TwoWayTransformer

SMALL = {"num_heads": 2, "mlp_dim": 32}


@pytest.mark.parametrize("class_mlp", ["shared", "per_class"])
@pytest.mark.parametrize("upscaling", ["two_2x2", "one_4x4"])
def test_permuting_the_class_queries_permutes_the_logits(class_mlp, upscaling):
    torch.manual_seed(0)
    decoder = ECMDecoder(5, 32, class_mlp=class_mlp, upscaling=upscaling, **SMALL).double().eval()
    embedding = torch.randn(2, 32, 4, 6, dtype=torch.float64)
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        before = decoder(embedding)
        for parameter in decoder.seg_layers.parameters():
            assert parameter.shape[0] == 5
            parameter.copy_(parameter[order].clone())
        after = decoder(embedding)
    assert before.shape == (2, 5, 16, 24)
    torch.testing.assert_close(after, before[:, order])
    assert (after - before).abs().max() > 1e-3


@pytest.mark.parametrize("shape", [(2, 8, 16, 16), (1, 3, 4, 20), (1, 2, 1, 1)])
@pytest.mark.parametrize("sizes", [(9, 5, 13), (3,)])
def test_pools_equal_square_pools(shape, sizes):
    x = torch.randn(shape, dtype=torch.float64)
    pools = [nn.AvgPool2d(size, stride=1, padding=size // 2, count_include_pad=False)(x) for size in sizes]
    torch.testing.assert_close(sum_of_pools(x, sizes, weight=0), sum(pools))
    torch.testing.assert_close(sum_of_pools(x, sizes, weight=-0.5), sum(pools) - 0.5 * x)


def test_pools_of_large_maps_keep_float32_precision():
    x = 1000 + torch.randn(1, 2, 128, 128, dtype=torch.float64)
    exact, pooled = sum_of_pools(x, (5,), weight=0), sum_of_pools(x.float(), (5,), weight=0)
    assert ((pooled - exact).abs() / exact).max() < 1e-6


def test_delta_is_identity_plus_three_pooling_operators():
    delta = MultiscalePooling()
    x = torch.randn(2, 4, 33, 20, dtype=torch.float64)
    pools = (torch.nn.AvgPool2d(k, stride=1, padding=k // 2, count_include_pad=False) for k in (5, 9, 13))
    torch.testing.assert_close(delta(x), x + sum(pool(x) - x for pool in pools))
    constant = torch.randn(1, 4, 1, 1).expand(-1, -1, 9, 17)
    torch.testing.assert_close(delta(constant), constant)


@pytest.mark.parametrize("sizes", [[], [4], [0], [5.0]])
def test_invalid_pool_sizes_are_rejected(sizes):
    with pytest.raises(ValueError, match="pool sizes must be odd positive integers"):
        MultiscalePooling(sizes)


def test_pools_change_the_output():
    torch.manual_seed(0)
    with_pools = ECMDecoder(2, 32, **SMALL).eval()
    without = ECMDecoder(2, 32, multiscale_pooling=False, **SMALL).eval()
    without.load_state_dict(with_pools.state_dict())
    embedding = torch.randn(1, 32, 8, 8)
    with torch.no_grad():
        assert (with_pools(embedding) - without(embedding)).abs().max() > 1e-3


def test_two_layers_and_last_attention_follow_the_equations():
    """Eq. 6-7 written out for one head: delta of each layer's tokens, the initial queries as query encoding."""
    torch.manual_seed(0)
    delta = MultiscalePooling((3, 5))
    transformer = TwoWayTransformer(32, 2, 1, 16, delta).double()
    for norm in transformer.modules():
        if isinstance(norm, nn.LayerNorm):
            nn.init.normal_(norm.weight, 1, 0.3)
            nn.init.normal_(norm.bias)
    queries, image, psi = torch.randn(2, 3, 32), torch.randn(2, 32, 4, 6), torch.randn(24, 32)
    queries, image, psi = queries.double(), image.double(), psi.double()

    def attend(attention, query, key, value):
        query, key, value = attention.query(query), attention.key(key), attention.value(value)
        weights = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(-1)
        return attention.projection(weights @ value)

    def pool(tokens):
        return delta(tokens.transpose(1, 2).unflatten(2, (4, 6))).flatten(2).transpose(1, 2)

    with torch.no_grad():
        new_queries, new_image = transformer(queries, image, psi)

        first, second = transformer.layers
        h = image.flatten(2).transpose(1, 2)
        pooled = pool(h)
        q = first.norm1(attend(first.self_attention, queries, queries, queries))
        q = first.norm2(q + attend(first.query_to_image, q + queries, h + psi, pooled))
        q = first.norm3(q + first.mlp(q))
        h = first.norm4(pooled + attend(first.image_to_query, pooled + psi, q + queries, q))

        pooled = pool(h)
        q = second.norm1(q + attend(second.self_attention, q + queries, q + queries, q))
        q = second.norm2(q + attend(second.query_to_image, q + queries, h + psi, pooled))
        q = second.norm3(q + second.mlp(q))
        h = second.norm4(pooled + attend(second.image_to_query, pooled + psi, q + queries, q))

        q = transformer.final_norm(q + attend(transformer.final_attention, q + queries, h + psi, h))
    torch.testing.assert_close(new_queries, q)
    torch.testing.assert_close(new_image, h.transpose(1, 2).unflatten(2, (4, 6)))


def test_per_class_mlp_equals_one_mlp_per_class():
    mlp = PerClassMlp(3, [8, 6, 4])
    x = torch.randn(2, 3, 8)
    out = mlp(x)
    for k in range(3):
        expected = x[:, k]
        for index, layer in enumerate(mlp.layers):
            expected = F.linear(expected if index == 0 else expected.relu(), layer.weight[k].T, layer.bias[k, 0])
        torch.testing.assert_close(out[:, k], expected)


def test_per_class_linear_starts_as_nn_linear_does():
    torch.manual_seed(0)
    ours, reference = PerClassLinear(50, 64, 32), nn.Linear(64, 50 * 32)
    for mine, theirs in ((ours.weight, reference.weight), (ours.bias, reference.bias)):
        assert mine.abs().max() <= 64**-0.5
        assert mine.std().item() == pytest.approx(theirs.std().item(), rel=0.05)


def test_fourier_encoding_is_distinct_row_major_and_saved():
    torch.manual_seed(0)
    encoding = RandomFourierEncoding(32)
    psi = encoding((3, 4))
    assert psi.shape == (12, 32) and psi.abs().max() <= 1
    assert torch.cdist(psi, psi).fill_diagonal_(1).min() > 1e-2
    y, x = 1, 2  # position in [-1, 1] at the pixel center, as (x, y)
    angles = 2 * torch.pi * torch.tensor([2 * (x + 0.5) / 4 - 1, 2 * (y + 0.5) / 3 - 1]) @ encoding.gaussian
    torch.testing.assert_close(psi[y * 4 + x], torch.cat((angles.sin(), angles.cos())))
    assert "gaussian" in encoding.state_dict()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_classes": 0}, "num_classes must be 1 or more, got 0"),
        ({"class_mlp": "none"}, "class_mlp must be"),
        ({"upscaling": "8x8"}, "upscaling must be one of"),
        ({"num_heads": 3}, "cannot be split into 3 heads"),
    ],
)
def test_invalid_arguments_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        ECMDecoder(**{"num_classes": 2, "dim": 32, **arguments})


def test_deep_supervision_can_only_be_switched_off():
    decoder = ECMDecoder(2, 32, **SMALL)
    decoder.deep_supervision = False
    assert decoder.deep_supervision is False
    with pytest.raises(ValueError, match="no deep supervision"):
        decoder.deep_supervision = True


@pytest.mark.parametrize("tokens, others", [(2, 40), (40, 2), (7, 8), (8, 7), (1, 1)])
def test_absorbed_projections_keep_the_output(tokens, others):
    attention = Attention(32, 16, 2).double()
    inputs = [torch.randn(3, n, 32, dtype=torch.float64, requires_grad=True) for n in (tokens, others, others)]
    parameters = [*inputs, *attention.parameters()]
    results = []
    for attention.fuse_projections in (False, True):
        out = attention(*inputs)
        results.append([out, *torch.autograd.grad((out**2).sum(), parameters)])
    for plain, absorbed in zip(*results, strict=True):
        torch.testing.assert_close(plain, absorbed, atol=1e-12, rtol=1e-7)


@pytest.mark.parametrize("classes, projected", [(2, False), (15, False), (16, True), (40, True)])
def test_image_tokens_are_projected_only_for_many_classes(classes, projected):
    """With 8 heads, 16 queries give as many vectors as the attention has channels."""
    network = TwoWayTransformer(256, 1, 8, 64, nn.Identity())
    calls = []
    network.final_attention.key.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        network(torch.randn(1, classes, 256), torch.randn(1, 256, 8, 8), torch.randn(64, 256))
    assert bool(calls) == projected
