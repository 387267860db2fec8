"""The networks that a plan can name, with every argument: a new network or width is a row here.

Networks are known by their dotted path alone; nnU-Net imports them when it builds them from a plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = [
    "NETWORKS",
    "Network",
    "SEGMAFORMER",
    "arguments_of",
    "network_name_of",
]


@dataclass(frozen=True)
class Network:
    """A network class by its dotted path, and the arguments that a plan gives it (plain JSON values)."""

    class_path: str
    arguments: dict[str, Any]


_HRMEDSEG: dict[str, Any] = {
    # LGViT encoder
    "embed_dim": 96,
    "depth": 10,
    "num_heads": [6, 12, 24],
    "channel_interactive_layers": 2,
    "expansion": 2,
    "inter_gate": True,
    "exter_gate": True,
    "rotary": True,
    "drop_path": 0.1,
    # neck and ECM-Decoder
    "neck": "1x1_3x3",
    "decoder_dim": 256,
    "decoder_depth": 2,
    "decoder_heads": 8,
    "decoder_mlp_dim": 256,
    "multiscale_pooling": True,
    "pool_sizes": [5, 9, 13],
    "class_mlp": "shared",
    "upscaling": "two_2x2",
    # of training, no part of the network
    "recompute": False,
}

NETWORKS: dict[str, Network] = {
    "HRMedSeg": Network("nnunet_hrmedseg.architectures.HRMedSeg", _HRMEDSEG),
    "HERSeg": Network("nnunet_hrmedseg.architectures.HERSeg", {**_HRMEDSEG, "neck": "3x3_1x1", "upscaling": "one_4x4"}),
}

SEGMAFORMER = Network(
    "nnunet_hrmedseg.architectures.SegMaFormer",
    {
        # encoder, stage by stage
        "embed_dims": [36, 66, 96, 192],
        "depths": [2, 2, 1, 1],
        "strides": [[4, 4, 4], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
        "kernel_sizes": [[7, 7, 7], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
        "reductions": [[4, 4, 4], [1, 1, 1], [1, 1, 1]],
        "state_sizes": [8, 4, 4],
        "expansions": [2, 2, 1],
        "conv_width": 3,
        "num_heads": 6,
        "mlp_ratios": [4, 4, 3, 3],
        # all-MLP decoder
        "decoder_dim": 256,
        # of training, no part of the network
        "recompute": False,
    },
)
"""The network for volumes; a plan gives it strides, kernels and reductions that follow from spacing and patch size."""


def network_name_of(class_path: str | None) -> str | None:
    """The row of `NETWORKS` with this dotted path, or None where the network is not one of ours."""
    return next((name for name, network in NETWORKS.items() if network.class_path == class_path), None)


def arguments_of(class_path: str) -> dict[str, Any] | None:
    """Return all arguments of the network with this dotted path, with their defaults; None for networks of others."""
    return next((n.arguments for n in (*NETWORKS.values(), SEGMAFORMER) if n.class_path == class_path), None)
