"""Parts of a network that are evaluated again in the backward pass instead of keeping what they computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["recomputed"]

Result = TypeVar("Result")


def recomputed(function: Callable[..., Result], *arguments: Any, enabled: bool = True, random: bool = False) -> Result:
    """function(*arguments), of which only the arguments are kept for the backward pass. Gradients are the same.

    Batch normalisation updates its running statistics once, not twice. With ``random``, what the function draws at
    random it draws again. With ``enabled`` False it is the plain call.
    """
    if not enabled or not torch.is_grad_enabled():
        return function(*arguments)
    if torch.compiler.is_compiling():
        # The compiler repeats what the gradients need and nothing else; it knows no contexts.
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=random)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), running_statistics_kept(function)

    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=random, context_fn=contexts)


@contextmanager
def running_statistics_kept(function: Callable[..., Any]) -> Iterator[None]:
    """Within this context, batch normalisation in `function`, if that is a module, leaves its statistics alone."""
    modules = function.modules() if isinstance(function, nn.Module) else ()
    norms = [module for module in modules if isinstance(module, nn.BatchNorm2d) and module.training]
    states = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, states, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
