"""Parameters and multiply-accumulates compared with Tables 6-8 of HRMedSeg (arXiv 2504.06205v1)."""

from __future__ import annotations

import pytest

from nnunet_hrmedseg.architectures import HERSeg, HRMedSeg
from nnunet_hrmedseg.architectures.counting import (
    disable_projection_fusion,
    multiply_accumulates,
    parameters,
)
from tests.architectures.thop_counts import multiply_accumulates_like_thop

pytestmark = pytest.mark.slow

INPUT = (1, 3, 1024, 1024)

# row, arguments, parameters (M), "FLOPs" (G) as published
PUBLISHED = [
    ("Table 6  L=4   C=96", {"depth": 4}, 3.04, 7.43),
    ("Table 6  L=8   C=96", {"depth": 8}, 3.37, 8.74),
    ("Table 6  L=10  C=96", {}, 3.53, 9.39),
    ("Table 6  L=12  C=96", {"depth": 12}, 3.69, 10.05),
    ("Table 6  L=16  C=96", {"depth": 16}, 4.01, 11.36),
    ("Table 6  L=10  C=24", {"embed_dim": 24}, 2.63, 5.73),
    ("Table 6  L=10  C=48", {"embed_dim": 48}, 2.82, 6.52),
    ("Table 6  L=10  C=192", {"embed_dim": 192}, 6.22, 20.43),
    ("Table 6  L=10  C=384", {"embed_dim": 384}, 16.75, 63.56),
    ("Table 7  w/o channel-interactive layers", {"channel_interactive_layers": 0}, 3.45, 9.06),
    ("Table 7  w/o token-interactive layers", {"depth": 0}, 2.72, 6.12),
]

# The gate rows of Table 8 cannot be derived from text or public code: they are printed and compared with the layers.
GATES = [
    ("Table 8  inter gate only", {"exter_gate": False}, 3.39, 8.76),
    ("Table 8  exter gate only", {"inter_gate": False}, 3.92, 10.73),
    ("Table 8  both gates", {}, 3.53, 9.39),
]


def public_network(**arguments) -> HRMedSeg:
    """Build the network of the public implementation: three MLPs, one per class, without pools."""
    return HRMedSeg(3, 3, class_mlp="per_class", multiscale_pooling=False, **arguments)


@pytest.fixture(scope="module")
def counted() -> dict[str, tuple[float, float]]:
    """Return parameters (M) and multiply-accumulates by thop's rules (G) of every row."""
    counts = {}
    for row, arguments, *_ in PUBLISHED + GATES:
        network = public_network(**arguments)
        counts[row] = (
            parameters(network)["total"] / 1e6,
            multiply_accumulates_like_thop(network, INPUT)["total"] / 1e9,
        )
    return counts


@pytest.mark.slow
def test_print_table(counted, capsys):
    lines = [
        f"{'':40s} parameters (M)      MACs by thop's rules (G)",
        f"{'':40s} published    here   published    here",
    ]
    for row, _, published_parameters, published_macs in PUBLISHED + GATES:
        here_parameters, here_macs = counted[row]
        lines.append(
            f"{row:40s} {published_parameters:9.2f} {here_parameters:7.3f} {published_macs:11.2f} {here_macs:7.3f}"
        )
    with disable_projection_fusion(network := public_network()):
        macs = multiply_accumulates(network, INPUT)
    lines.append(
        "By FlopCounterMode / 2, pools off, L=10, C=96, 1024 x 1024 (the public code: total 8.23 G, encoder 3.94 G):"
    )
    lines.append("  " + ", ".join(f"{part} {count / 1e9:.3f} G" for part, count in macs.items()))
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert len(lines) == len(PUBLISHED) + len(GATES) + 4


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row[0])
def test_counts_match_the_published_row(counted, row):
    name, _, published_parameters, published_macs = row
    here_parameters, here_macs = counted[name]
    assert here_parameters == pytest.approx(published_parameters, rel=0.005)
    assert here_macs == pytest.approx(published_macs, rel=0.005)


def test_gates_change_parameters_by_their_layers(counted):
    per_gate = 10 * (96 * 96 + 96)
    inter = 10 * (96 * 96 + 96 - (96 * 24 + 24 + 24 * 96 + 96))
    both, inter_only, exter_only = (
        counted[row][0] for row in ("Table 8  both gates", "Table 8  inter gate only", "Table 8  exter gate only")
    )
    assert both - inter_only == pytest.approx(per_gate / 1e6)
    assert exter_only - both == pytest.approx(inter / 1e6)


def test_parameters_of_parts():
    network = public_network()
    counts = parameters(network)
    assert counts["encoder"] == 957_648
    assert counts["neck"] == 615_424
    assert parameters(network.encoder)["patch_embedding"] == 73_824
    assert parameters(network.encoder)["channel_interactive"] == 2 * 39_552
    assert parameters(network.encoder)["token_interactive"] == 10 * 80_472
    decoder = parameters(network.decoder)
    assert decoder["transformer"] == 1_452_672
    assert decoder["upscaling"] == 73_952
    assert decoder["seg_layers"] == 3 * 256 + 419_424
    # The public implementation only adds one token (256) and an unused prompt encoder (6,220).
    assert counts["total"] + 256 + 6_220 == 3_526_364


@pytest.mark.slow
def test_multiply_accumulates_of_parts():
    with disable_projection_fusion(network := public_network()):
        macs = multiply_accumulates(network, INPUT)
    assert macs["encoder"] == pytest.approx(3.94e9, rel=0.005)
    assert macs["total"] == pytest.approx(8.23e9, rel=0.005)
    assert macs["total"] == macs["encoder"] + macs["neck"] + macs["decoder"]
    # Table 4: the backbone, encoder and neck, has 6.43 G
    like_thop = multiply_accumulates_like_thop(public_network(), INPUT)
    assert like_thop["encoder"] + like_thop["neck"] == pytest.approx(6.43e9, rel=0.005)


def test_counts_of_herseg():
    """The published 3.67 M and 9.39 G correspond to the layers of the first version with four class MLPs."""
    network = HRMedSeg(3, 4, class_mlp="per_class", multiscale_pooling=False)
    assert parameters(network)["total"] / 1e6 == pytest.approx(3.67, rel=0.005)
    assert multiply_accumulates_like_thop(network, INPUT)["total"] / 1e9 == pytest.approx(9.39, rel=0.005)

    counts = parameters(HERSeg(3, 2))
    assert counts == {"total": 2_969_488, "encoder": 957_648, "neck": 287_744, "decoder": 1_724_096}
