"""SegMaFormer: published counts, patch sizes, recomputation, precision, and nnU-Net's use of the network."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from nnunet_hrmedseg.architectures import SegMaFormer
from nnunet_hrmedseg.architectures.counting import multiply_accumulates, parameters
from nnunet_hrmedseg.architectures.layers import to_map, to_tokens
from nnunet_hrmedseg.architectures.segmaformer import PatchEmbedding
from nnunet_hrmedseg.evaluation.benchmark.memory import saved_activation_bytes
from nnunet_hrmedseg.evaluation.benchmark.networks import nnunet_loss
from nnunet_hrmedseg.plans.specs import NETWORKS

MIB = 2**20
INPUT = (1, 4, 128, 128, 128)

SMALL = {
    "embed_dims": (12, 14, 12, 24),
    "state_sizes": (3, 2, 2),
    "num_heads": 2,
    "mlp_ratios": (2, 2, 1, 1),
    "decoder_dim": 20,
}
ISOTROPIC = {"strides": ((4, 4, 4), (2, 2, 2), (2, 2, 2), (1, 1, 1))}
THICK_SLICES = {
    "strides": ((1, 4, 4), (2, 2, 2), (1, 2, 2), (1, 1, 1)),
    "kernel_sizes": ((1, 7, 7), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "reductions": ((2, 4, 4), (1, 1, 1), (1, 1, 1)),
}


def small(**arguments) -> SegMaFormer:
    torch.manual_seed(0)
    network = SegMaFormer(2, 3, **{**SMALL, **ISOTROPIC, **arguments})
    for name, parameter in network.named_parameters():
        if "scale" in name:
            nn.init.ones_(parameter)  # starts near 0, which would hide the branches
    return network


# ---- published counts ------------------------------------------------------------------------------------------------


def decode_as_in_the_paper(decoder, maps):
    """Upsample all stages to the finest grid, concatenate, and fuse by a 1 x 1 x 1 convolution. Weights are shared."""
    projected = [to_map(p(to_tokens(x)), x.shape[2:]) for p, x in zip(decoder.projections, maps, strict=True)]
    finest = maps[0].shape[2:]
    same_grid = [F.interpolate(x, size=finest, mode="trilinear", align_corners=False) for x in projected]
    fused = F.conv3d(torch.cat(same_grid, 1), decoder.fuse.weight[..., None, None, None])
    return decoder.seg_layers(F.relu(decoder.norm(fused)))


def test_published_parameters():
    counts = parameters(SegMaFormer(4, 3))
    assert counts == {"total": 2_018_505, "encoder": 1_652_166, "decoder": 366_339}
    assert counts["total"] / 1e6 == pytest.approx(2.02, rel=0.005)


def test_published_parameters_include_the_reduction_of_the_first_stage():
    without = SegMaFormer(4, 3, reductions=((1, 1, 1),) * 3)
    assert parameters(without)["total"] == 2_018_505 - 2 * (36 * 36 * 4**3 + 36 + 2 * 36) == 1_852_401


@pytest.mark.slow
def test_print_multiply_accumulates(capsys):
    network = SegMaFormer(4, 3)
    here = multiply_accumulates(network, INPUT)
    maps = [torch.empty(1, width, *3 * [n], device="meta") for width, n in ((36, 32), (66, 16), (96, 8), (192, 4))]
    with FlopCounterMode(display=False) as counter:
        decode_as_in_the_paper(network.decoder.to("meta"), maps)
    published = here["encoder"] + counter.get_total_flops() // 2
    with capsys.disabled():
        print(
            f"\nSegMaFormer, 4 channels, 3 classes, 128 x 128 x 128: {parameters(network)['total']:,} parameters "
            f"(published: 2.02 M). Multiply-accumulates by FlopCounterMode / 2, which counts convolutions and matrix "
            f"products: {published / 1e9:.2f} G in the paper's order (published: about 15 G), "
            f"{here['total'] / 1e9:.2f} G as evaluated here (encoder {here['encoder'] / 1e9:.2f}, "
            f"decoder {here['decoder'] / 1e9:.2f})."
        )
    assert published / 1e9 == pytest.approx(12.73, abs=0.01)
    assert here["total"] / 1e9 == pytest.approx(6.59, abs=0.01)


GRIDS = ((6, 8, 4), (3, 4, 2), (3, 2, 1), (3, 2, 1))


def test_decoder_equals_that_of_the_paper():
    decoder = small().double().decoder
    shapes = [(2, width, *grid) for width, grid in zip(SMALL["embed_dims"], GRIDS, strict=True)]
    maps = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    torch.testing.assert_close(decoder(maps), decode_as_in_the_paper(decoder, maps))


def rotation_matrix(position, width):
    """Return 2 x 2 rotations along the diagonal, two for each of z, y and x; the remaining channels are unchanged."""
    matrix = torch.eye(width, dtype=torch.float64)
    for pair in range(6):
        angle = position[pair // 2] * 10000.0 ** (-(pair % 2) / 2)
        turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        matrix[2 * pair : 2 * pair + 2, 2 * pair : 2 * pair + 2] = torch.tensor(turn)
    return matrix


def test_patches_are_rotated_by_their_positions():
    torch.manual_seed(0)
    embedding = PatchEmbedding(2, 14, (3, 3, 3), (2, 2, 2)).double()
    nn.init.normal_(embedding.norm.weight)
    nn.init.normal_(embedding.norm.bias)
    volume = torch.randn(2, 2, 4, 6, 8, dtype=torch.float64)
    patches = embedding.proj(volume)
    assert embedding.grid(volume) == patches.shape[2:] == (2, 3, 4)
    turned = [
        patches[:, :, z, y, x] @ rotation_matrix((z, y, x), 14).T
        for z, y, x in itertools.product(range(2), range(3), range(4))
    ]
    torch.testing.assert_close(embedding(volume), embedding.norm(torch.stack(turned, 1)), rtol=1e-5, atol=1e-5)


# ---- patches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [ISOTROPIC, THICK_SLICES], ids=["isotropic", "thick slices"])
@pytest.mark.parametrize("patch", [(16, 32, 32), (17, 31, 40), (5, 33, 50), (1, 20, 20)], ids=str)
def test_any_patch_size_is_supported(shape, patch):
    network = small(**shape)
    logits = network(torch.randn(1, 2, *patch))
    assert logits.shape == (1, 3, *patch)
    logits.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name
        # a bias in front of a norm has no gradient
        assert parameter.grad.any() or name.endswith(("depthwise.bias", "key.bias")), name


def test_odd_patch_is_padded_and_cropped():
    network = small().eval()
    patch = torch.randn(1, 2, 13, 30, 20)
    padded = F.pad(patch, (0, 12, 0, 2, 0, 3))
    assert network.multiples == [16, 16, 16]
    torch.testing.assert_close(network(patch), network(padded)[:, :, :13, :30, :20])


def test_grids_follow_the_strides():
    network = small(**THICK_SLICES)
    assert network.multiples == [2, 16, 16]
    maps = network.encoder(torch.zeros(1, 2, 4, 32, 48))
    assert [tuple(x.shape[1:]) for x in maps] == [(12, 4, 8, 12), (14, 2, 4, 6), (12, 2, 2, 3), (24, 2, 2, 3)]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"deep_supervision": True}, "no deep supervision"),
        ({"num_heads": 5}, "cannot be split into 5"),
        ({"strides": ((4, 4), (2, 2), (2, 2), (2, 2))}, "strides must be 4 triples"),
        ({"reductions": ((4, 4, 4),)}, "reductions must be 3 triples"),
        ({"kernel_sizes": ((8, 8, 8), (3, 3, 3), (3, 3, 3), (3, 3, 3))}, "must be odd"),
    ],
)
def test_invalid_arguments_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


@pytest.mark.parametrize(
    "shape, message", [((1, 3, 16, 16, 16), "takes volumes of shape"), ((1, 2, 16, 16, 16), "a single token")]
)
def test_invalid_volumes_are_rejected(shape, message):
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(shape))


# ---- training and precision ------------------------------------------------------------------------------------------


def test_recomputation_gives_the_same_step():
    plain, recomputing = small(), small(recompute=True)
    image, target = torch.randn(1, 2, 16, 32, 32), torch.randint(0, 3, (1, 1, 16, 32, 32))
    loss = nnunet_loss()
    values = []
    for network in (plain, recomputing):
        values.append(loss(network(image), target))
        values[-1].backward()
    torch.testing.assert_close(values[0], values[1])
    for (name, expected), parameter in zip(plain.named_parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_bytes_kept_for_a_patch_of_64():
    image, target = torch.rand(1, 1, 64, 64, 64), torch.randint(0, 2, (1, 1, 64, 64, 64), dtype=torch.int16)
    plain, recomputing = (
        saved_activation_bytes(SegMaFormer(1, 2, recompute=r), nnunet_loss(), image, target) for r in (0, 1)
    )
    assert 50 * MIB < plain < 70 * MIB
    assert 5 * MIB < recomputing < 0.25 * plain


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_autocast_is_close_to_float32(dtype, tolerance):
    network = small()
    # Never two tokens deep: with AVX512, bfloat16 gradients of depthwise 3 x 3 x 3 convolutions in torch 2.14 then read
    # uninitialized memory.
    image = torch.randn(1, 2, 64, 16, 16)
    with torch.no_grad():
        expected = network(image)
    with torch.autocast("cpu", dtype):
        logits = network(image)
    assert (logits - expected).abs().max() < tolerance * expected.abs().max()
    logits.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.slow
def test_compiles_to_one_graph():
    network = small(recompute=True, depths=(1, 1, 1, 1))
    image = torch.randn(1, 2, 16, 32, 32)
    logits = torch.compile(network, backend="eager", fullgraph=True)(image)
    torch.testing.assert_close(logits, network(image), rtol=1e-4, atol=1e-5)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.slow
def test_learns_to_segment_a_ball():
    torch.manual_seed(0)
    network = SegMaFormer(1, 2, **SMALL, **ISOTROPIC)
    optimizer, loss = torch.optim.AdamW(network.parameters(), lr=3e-3), nnunet_loss()
    z, y, x = torch.meshgrid(*(torch.arange(24.0),) * 3, indexing="ij")
    losses = []
    for _ in range(30):
        center = torch.randint(6, 18, (2, 3))
        ball = torch.stack([(z - c[0]) ** 2 + (y - c[1]) ** 2 + (x - c[2]) ** 2 < 30 for c in center])[:, None]
        value = loss(network(ball + 0.3 * torch.randn(ball.shape)), ball.to(torch.int16))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert sum(losses[-3:]) / 3 < losses[0] - 0.6


# ---- nnU-Net ---------------------------------------------------------------------------------------------------------


def test_nnunet_builds_the_network_from_plans():
    spec = NETWORKS["SegMaFormer"]
    network = get_network_from_plans(spec.class_path, spec.arguments, [], 4, 3, deep_supervision=False)
    assert type(network) is SegMaFormer
    assert parameters(network)["total"] == 2_018_505
    network.decoder.deep_supervision = False  # as nnUNetTrainer.set_deep_supervision_enabled does
    with pytest.raises(ValueError, match="deep_supervision=True"):
        network.decoder.deep_supervision = True


def test_only_seg_layers_depend_on_the_classes():
    """nnU-Net skips seg_layers when it loads weights of another dataset."""
    two, five = (SegMaFormer(1, classes, **SMALL).state_dict() for classes in (2, 5))
    differing = {name for name in two if two[name].shape != five[name].shape}
    assert differing == {"decoder.seg_layers.weight", "decoder.seg_layers.bias"}


def test_can_be_pickled_and_copied():
    network = small().eval()
    image = torch.randn(1, 2, 16, 32, 32)
    expected = network(image)
    for other in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        torch.testing.assert_close(other(image), expected)
