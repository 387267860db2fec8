"""Find the state dict in a checkpoint, whatever a training script wrapped around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["unwrap"]

_KEYS = ("state_dict", "model_state_dict", "model", "net", "network")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
_DEEPEST = 4  # wrappers inside each other; a hostile file could nest them without end


def unwrap(checkpoint: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint, without wrapper keys and without common prefixes of their names.

    Training scripts save a state dict beside other things (`{"model": ..., "optimizer": ...}`, Lightning's
    `state_dict`), and DataParallel, DistributedDataParallel and torch.compile put `module.` or `_orig_mod.` before
    every name. A prefix is removed only if all names have it.

    Args:
        checkpoint: a dict as torch.save wrote it.

    Returns:
        Name -> tensor; empty if the checkpoint contains no named tensors. Entries that are not tensors are left out.
    """
    state = _named_tensors(checkpoint)
    for _ in range(_DEEPEST):
        if state:
            break
        inner = next((checkpoint[key] for key in _KEYS if isinstance(checkpoint.get(key), Mapping)), None)
        if inner is None:
            break
        checkpoint, state = inner, _named_tensors(inner)
    for _ in range(_DEEPEST):
        prefix = next(
            (prefix for prefix in _PREFIXES if state and all(name.startswith(prefix) for name in state)), None
        )
        if prefix is None:
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _named_tensors(part: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in part.items() if isinstance(name, str) and isinstance(value, Tensor)}
