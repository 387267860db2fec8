"""Find the weights of a network in a checkpoint, whatever a training script wrapped around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunet_hrmedseg.errors import CheckpointError, format_names

__all__ = ["unwrap"]

_KEYS = ("model", "state_dict", "model_state_dict", "model_state", "net", "network", "module", "sam")
"""Keys under which training scripts save the weights of a network, in the order in which they are searched."""
_DEEPEST = 3  # wrappers inside each other; a hostile file could nest them without end


def unwrap(
    path: Path, checkpoint: Mapping[Any, Any], known: Sequence[str], network: str
) -> tuple[dict[str, Tensor], str]:
    """Return the weights of a network, without wrapper keys and without prefixes of their names.

    Training scripts save a state dict beside other things (`{"model": ..., "optimizer": ...}`, Lightning's
    `state_dict`), and DataParallel, DistributedDataParallel and torch.compile put `module.` or `_orig_mod.` before
    every name. The weights are recognized by a few names that the network always has.

    Args:
        path: Of the checkpoint, for messages.
        checkpoint: A dict as torch.save wrote it.
        known: Names of weights by which the network is recognized.
        network: Name of the network, for messages.

    Returns:
        Name -> tensor, and a sentence on what was unwrapped, empty if nothing was. If the checkpoint does not contain
        the network, all tensors at its top level are returned.

    Raises:
        CheckpointError: The checkpoint contains several of these networks.
    """
    for keys, part in _parts(checkpoint):
        prefix = _find_prefix(path, part, known, network)
        if prefix is not None:
            found = {name.removeprefix(prefix): value for name, value in part.items() if name.startswith(prefix)}
            wrappers = [f"under {' / '.join(keys)}"] if keys else []
            wrappers += [f"with {prefix!r} before each name"] if prefix else []
            note = f"The weights of {network} in {path} are {', '.join(wrappers)}." if wrappers else ""
            return found, note
    return _named_tensors(checkpoint), ""


def _parts(part: Mapping[Any, Any], keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield the named tensors of the checkpoint, and those under its wrapper keys, with the keys that lead there."""
    yield keys, _named_tensors(part)
    for key in _KEYS:
        inner = part.get(key)
        if len(keys) < _DEEPEST and isinstance(inner, Mapping):
            yield from _parts(inner, (*keys, key))


def _find_prefix(path: Path, names: Mapping[str, Any], known: Sequence[str], network: str) -> str | None:
    """Return what is before the known names; None if none of them is there."""
    prefixes = {name.removesuffix(ending) for ending in known for name in names if name.endswith(ending)}
    prefixes = {prefix for prefix in prefixes if not prefix or prefix.endswith(".")}
    if "" in prefixes or not prefixes:
        return "" if prefixes else None
    if len(prefixes) > 1:
        raise CheckpointError(
            f"{path} holds several {network}s, with names that begin with {format_names(sorted(prefixes))}. Save one "
            f"of them alone."
        )
    return prefixes.pop()


def _named_tensors(part: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in part.items() if isinstance(name, str) and isinstance(value, Tensor)}
