"""One process, or many that torchrun started: who am I, on which device, and what do the others say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from nnunet_hrmedseg.errors import SetupError
from nnunet_hrmedseg.io.devices import choose_device

__all__ = ["Processes", "processes"]


@dataclass(frozen=True)
class Processes:
    """The place of this process among all that train together.

    Attributes:
        rank: 0 to count - 1; 0 writes files and talks to the user.
        count: number of processes.
        device: where this one computes.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def log(self, text: str) -> None:
        """Print a line, once for all of them."""
        if self.first:
            print(text, flush=True)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over all processes; alone, the module itself."""
        if self.count == 1:
            return module
        if self.device.type == "cuda":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
            return nn.parallel.DistributedDataParallel(module, device_ids=[self.device.index])
        return nn.parallel.DistributedDataParallel(module)

    def mean(self, value: Tensor) -> Tensor:
        """Mean over the processes."""
        if self.count > 1:
            value = value.clone()
            distributed.all_reduce(value)
            value /= self.count
        return value

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            distributed.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)


@contextmanager
def processes(device: str | None = None) -> Iterator[Processes]:
    """This process and those that torchrun started with it (environment variables RANK, WORLD_SIZE, LOCAL_RANK).

    Args:
        device: "cuda", "mps" or "cpu"; None: the first of these that is there.

    Raises:
        SetupError: there is no such device, or no GPU for each process.
    """
    device = choose_device(device)
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        yield Processes(0, 1, torch.device(device, 0) if device == "cuda" else torch.device(device))
        return
    local = int(os.environ.get("LOCAL_RANK", 0))
    if device == "cuda" and local >= torch.cuda.device_count():
        raise SetupError(
            f"torchrun started process {local + 1} on this machine, which has {torch.cuda.device_count()} GPU(s). "
            f"Give --nproc_per_node no more than that, or -device cpu."
        )
    if device == "cuda":
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield Processes(
            distributed.get_rank(), count, torch.device(device, local) if device == "cuda" else torch.device(device)
        )
    finally:
        distributed.destroy_process_group()
