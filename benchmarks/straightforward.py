"""Compare the speed of HRMedSeg with a straightforward implementation with the same weights and outputs.

    python benchmarks/straightforward.py            prints the table, writes benchmarks/results/straightforward.json

The straightforward version pools with square windows, rotates by complex numbers, normalizes maps by mean and variance,
keeps maps in torch's default layout and computes the attention with einsum. The networks are run alternately; results
are medians.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_hrmedseg.architectures import HRMedSeg
from nnunet_hrmedseg.architectures.layers import LayerNorm2d
from nnunet_hrmedseg.architectures.lgvit import PatchEmbedding
from nnunet_hrmedseg.architectures.linear_attention import EPSILON, DualGatedLinearAttention
from nnunet_hrmedseg.architectures.multiscale_pooling import MultiscalePooling
from nnunet_hrmedseg.io.cpu_precision import processor_supports_bfloat16
from nnunet_hrmedseg.io.machine import processor_name
from nnunet_hrmedseg.trainers.losses import dice_and_focal


class PlainPatchEmbedding(PatchEmbedding):
    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image)


class PlainLayerNorm2d(LayerNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return self.weight[:, None, None] * ((x - mean) / torch.sqrt(variance + self.eps)) + self.bias[:, None, None]


class PlainPooling(MultiscalePooling):
    def forward(self, x: Tensor) -> Tensor:
        return x + sum(F.avg_pool2d(x, k, 1, k // 2, count_include_pad=False) - x for k in self.sizes)


class PlainAttention(DualGatedLinearAttention):
    def _linear_attention(self, query: Tensor, key: Tensor, value: Tensor, rotation) -> Tensor:
        query, key = F.elu(query) + 1, F.elu(key) + 1
        heads, tokens = self.num_heads, query.shape[1]
        normalizer = torch.einsum("bnhd,bhd->bnh", split(query, heads), split(key, heads).mean(1))
        if rotation is not None:
            turn = torch.complex(*rotation)
            query, key = (
                torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)
                for x in (query, key)
            )
        summary = torch.einsum("bnhd,bnhe->bhde", split(key, heads), split(value, heads)) / tokens
        out = torch.einsum("bnhd,bhde->bnhe", split(query, heads), summary)
        return (out / (normalizer + EPSILON)[..., None]).flatten(2)


def split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1))


PLAIN = {
    PatchEmbedding: PlainPatchEmbedding,
    LayerNorm2d: PlainLayerNorm2d,
    MultiscalePooling: PlainPooling,
    DualGatedLinearAttention: PlainAttention,
}


def straightforward(network: nn.Module) -> nn.Module:
    """Return a copy of the network with the same weights and plain layers."""
    plain = copy.deepcopy(network)
    for module in plain.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "straightforward.json")
    args = parser.parse_args()

    ours = HRMedSeg(3, 2)
    networks = {
        "straightforward": straightforward(ours),
        "HRMedSeg": ours,
        "HRMedSeg, recompute": HRMedSeg(3, 2, recompute=True),
    }
    image = torch.randn(1, 3, args.size, args.size)
    target = torch.randint(0, 2, (1, 1, args.size, args.size), dtype=torch.int16)
    for network in networks.values():
        network.cpu_bfloat16 = False
    if processor_supports_bfloat16():  # the default for prediction on these processors
        networks["HRMedSeg, bfloat16"] = copy.deepcopy(ours)
        networks["HRMedSeg, bfloat16"].cpu_bfloat16 = True
    losses = {network: dice_and_focal(regions=False, recompute=False) for network in networks.values()}
    losses[networks["HRMedSeg, recompute"]] = dice_and_focal(regions=False, recompute=True)
    for network in networks.values():
        network.upsample_in_training = network is networks["straightforward"]

    def predict(network: nn.Module) -> None:
        with torch.no_grad():
            network.eval()(image)

    def train(network: nn.Module) -> None:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=network.cpu_bfloat16):
            logits = network.train()(image)
        losses[network](logits, target).backward()

    with torch.no_grad():
        difference = (networks["straightforward"].eval()(image) - ours.eval()(image)).abs().max()
    print(f"largest difference of the logits: {float(difference):.1e}")
    rows = []
    for what in (predict, train):
        seconds: dict[str, list[float]] = {name: [] for name in networks}
        for _ in range(args.repeats + 1):
            for name, network in networks.items():
                start = time.perf_counter()
                what(network)
                seconds[name].append(time.perf_counter() - start)
        for name, values in seconds.items():
            median = statistics.median(values[1:])  # the first run is a warm-up
            rows.append({"network": name, "what": what.__name__, "seconds": values[1:], "median": median})
            print(f"{what.__name__:<8} {name:<22} {median:.3f} s")
    content = {
        "machine": processor_name(),
        "threads": torch.get_num_threads(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "size": args.size,
        "rows": rows,
    }
    args.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
