"""CUDA without a GPU: fake tensors, whose operators run through torch's CUDA dispatch, autocast included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["NoMixedDevices", "fake_cuda"]


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Within this context, tensors are fake and on CUDA unless a device is given; autocast to float16 works."""
    available = mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False)
    with available, FakeTensorMode(), torch.device("cuda"):
        yield


class NoMixedDevices(TorchDispatchMode):
    """Raise if an operator on CUDA gets a CPU tensor other than a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.ndim > 0}
        if len(devices) > 1 and function.overloadpacket.__name__ not in ("copy_", "_to_copy"):
            shapes = [(tuple(tensor.shape), tensor.device.type) for tensor in tensors]
            raise AssertionError(f"{function} mixes devices: {shapes}")
        self.operators += "cuda" in devices
        assert all(isinstance(tensor, FakeTensor) for tensor in tensors if tensor.device.type == "cuda")
        return function(*args, **(kwargs or {}))
