"""Activation checkpointing: layers that are evaluated again in the backward pass instead of keeping their results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

__all__ = ["Recomputable", "breaks_graphs", "recomputed", "uncompiled"]

Result = TypeVar("Result")

NORMS_THAT_COMPILE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Recomputable(nn.Module):
    """A module that can evaluate its layers again in the backward pass.

    Subclasses wrap their layers in `recomputed(..., enabled=self.recompute)`.
    """

    recompute = False

    def set_activation_checkpointing(self, enable: bool = True) -> None:
        """Switch recomputation on or off in this module and in everything below it.

        In training, each layer then keeps only its input, and is evaluated again in the backward pass. The results and
        gradients are the same.
        """
        for module in self.modules():
            if isinstance(module, Recomputable):
                module.recompute = enable


def recomputed(function: Callable[..., Result], *arguments: Any, enabled: bool = True, random: bool = False) -> Result:
    """Return function(*arguments), of which only the arguments are kept for the backward pass.

    Gradients are the same. Batch normalization updates its running statistics once, not twice. With ``random``, what
    the function draws at random it draws again. With ``enabled`` False it is the plain call.
    """
    if not enabled or not torch.is_grad_enabled():
        return function(*arguments)
    if torch.compiler.is_compiling() and not breaks_graphs(function):
        # The compiler repeats what the gradients need and nothing else; it knows no contexts.
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=random)
    return uncompiled(_recomputed, function, arguments, random)


def _recomputed(function: Callable[..., Result], arguments: tuple[Any, ...], random: bool) -> Result:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), running_statistics_kept(function)

    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=random, context_fn=contexts)


def breaks_graphs(function: Callable[..., Any]) -> bool:
    """Return whether a module holds a batch normalization that the compiler may not trace.

    That is SyncBatchNorm, any other that is not torch's own, and one whose momentum is None. A recomputed module with a
    break in it would be called by torch without the context that keeps running statistics, and would update them twice.
    """
    modules = function.modules() if isinstance(function, nn.Module) else ()
    norms = (module for module in modules if isinstance(module, _BatchNorm))
    return any(type(norm) not in NORMS_THAT_COMPILE or norm.momentum is None for norm in norms)


def uncompiled(function: Callable[..., Result], *arguments: Any) -> Result:
    """Return function(*arguments), evaluated without the compiler even in the middle of a compiled network."""
    return _disabled(function, arguments) if torch.compiler.is_compiling() else function(*arguments)


@torch.compiler.disable
def _disabled(function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
    return function(*arguments)


@contextmanager
def running_statistics_kept(function: Callable[..., Any]) -> Iterator[None]:
    """Within this context, batch normalization in `function`, if that is a module, leaves its statistics alone."""
    modules = function.modules() if isinstance(function, nn.Module) else ()
    norms = [module for module in modules if isinstance(module, _BatchNorm) and module.training]
    states = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, batches) in zip(norms, states, strict=True):
        norm.momentum = 0.0
        # a copy, not None: SyncBatchNorm insists on a counter
        norm.num_batches_tracked = None if batches is None else batches.clone()
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, states, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
