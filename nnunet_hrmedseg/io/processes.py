"""A single process, or many that torchrun started: rank, device, and communication."""

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
    """The position of this process among all that train together.

    Attributes:
        rank: 0 to count - 1; process 0 writes files and prints.
        count: number of processes.
        device: device of this process.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def log(self, text: str) -> None:
        """Print a line in the first process."""
        if self.first:
            print(text, flush=True)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module with gradients averaged over all processes; with a single process, the module itself."""
        if self.count == 1:
            return module
        if self.device.type == "cuda":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
            return nn.parallel.DistributedDataParallel(module, device_ids=[self.device.index])
        return nn.parallel.DistributedDataParallel(module)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over all processes."""
        if self.count > 1:
            value = value.clone()
            distributed.all_reduce(value)
            value /= self.count
        return value

    def wait(self) -> None:
        """Wait until all processes have called this method."""
        if self.count > 1:
            distributed.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)


@contextmanager
def processes(device: str | None = None) -> Iterator[Processes]:
    """Provide this process and those that torchrun started with it (RANK, WORLD_SIZE and LOCAL_RANK).

    Args:
        device: "cuda", "mps" or "cpu"; None: the first of these that is available.

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
