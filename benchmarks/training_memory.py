"""Peak memory of one training step, counted tensor by tensor, beside the estimate that sets the batch size.

    python benchmarks/training_memory.py            prints the table, writes benchmarks/results/training_memory.json

Counts the live bytes of every tensor that forward pass, loss and backward pass allocate (float32; the count is of
allocations, whatever the device), and adds weights, gradients and Adam's two averages.
"""

from __future__ import annotations

import argparse
import json
import platform
import weakref
from datetime import date
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_hrmedseg.architectures import HRMedSeg
from nnunet_hrmedseg.plans.memory import training_memory_gb
from nnunet_hrmedseg.trainers.losses import DiceAndFocalLoss

DEFAULTS = {"canvas": (512, 512), "batch_size": 1, "classes": 2, "channels": 3, "embed_dim": 96, "depth": 10}
ROWS = [
    {},
    {"classes": 1},
    {"classes": 5},
    {"classes": 20},
    {"channels": 1},
    {"channels": 8},
    {"depth": 4},
    {"depth": 16},
    {"embed_dim": 48},
    {"embed_dim": 192},
    {"embed_dim": 384},
    {"embed_dim": 192, "depth": 4},
    {"canvas": (512, 256)},
    {"canvas": (256, 256), "batch_size": 4},
    {"batch_size": 3, "classes": 10},
    {"canvas": (1024, 512), "classes": 5},
    {"canvas": (1024, 1024)},
    {"canvas": (1024, 1024), "batch_size": 4},
]


class LiveBytes(TorchDispatchMode):
    """Follows every storage that is made while it is on; `peak` is the largest sum of those alive at once."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._follow(leaf.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def counted_gb(
    canvas: tuple[int, int], batch_size: int, classes: int, channels: int, embed_dim: int, depth: int
) -> float:
    """GB (1e9 bytes) that one training step holds at its peak."""
    network = HRMedSeg(channels, classes, embed_dim=embed_dim, depth=depth).train()
    loss = DiceAndFocalLoss(regions=classes == 1)
    parameters = sum(p.numel() * p.element_size() for p in network.parameters())
    with LiveBytes() as counter:
        image = torch.rand(batch_size, channels, *canvas)
        target = (torch.rand(batch_size, 1, *canvas) * max(2, classes)).to(torch.int16)
        loss(network(image), target).backward()
    # the gradients are among what was counted
    return (counter.peak + 3 * parameters) / 1e9


def estimated_gb(
    canvas: tuple[int, int], batch_size: int, classes: int, channels: int, embed_dim: int, depth: int
) -> float:
    """The same by the model that the plans use."""
    return training_memory_gb(
        batch_size, canvas, num_input_channels=channels, num_classes=classes, embed_dim=embed_dim, depth=depth
    )


def main() -> None:
    default_output = Path(__file__).parent / "results" / "training_memory.json"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=default_output)
    args = parser.parse_args()
    rows = []
    print(f"{'':<60} counted GB  estimated GB  ratio")
    for changes in ROWS:
        row = {**DEFAULTS, **changes}
        counted, estimated = counted_gb(**row), estimated_gb(**row)
        rows.append({**row, "counted_gb": round(counted, 4), "estimated_gb": round(estimated, 4)})
        print(
            f"{str(changes) or 'defaults':<60} {counted:10.3f}  {estimated:12.3f}  {estimated / counted:5.2f}",
            flush=True,
        )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    machine = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    args.output.write_text(
        json.dumps({"date": str(date.today()), **machine, "dtype": "float32", "rows": rows}, indent=1)
    )
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
