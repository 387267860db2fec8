"""The weights of a SAM in checkpoints of other people's trainings, under the names of Meta's own files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunet_hrmedseg.errors import HRMedSegError, format_names
from nnunet_hrmedseg.io.checkpoints import weight_names

__all__ = ["sam_weights"]

WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "net", "network", "module", "sam")
"""Names under which trainings save the weights of a network, in the order in which they are looked at."""
KNOWN = ("image_encoder.patch_embed.proj.weight", "mask_decoder.iou_token.weight")
"""Weights by which a SAM is recognized; MobileSAM has the second only."""


def sam_weights(path: Path, checkpoint: dict[str, Any]) -> tuple[dict[str, Tensor], str]:
    """Return the weights of a SAM, wherever they are in a checkpoint, and a sentence on what was unwrapped.

    Weights under `model` or `state_dict` are found, and a prefix before all names (`module.`, `sam.`) is taken off.
    Where there is no SAM, all tensors of the checkpoint are returned as they are.

    Args:
        path: of the checkpoint, for messages.
        checkpoint: as it was loaded.

    Raises:
        HRMedSegError: the weights of several networks are there.
    """
    for keys, part in _parts(checkpoint):
        names = weight_names(part)
        prefixes = sorted({name.removesuffix(known) for known in KNOWN for name in names if name.endswith(known)})
        prefixes = [prefix for prefix in prefixes if not prefix or prefix.endswith(".")]
        if "" in prefixes:
            prefixes = [""]
        if len(prefixes) > 1:
            raise HRMedSegError(
                f"{path} holds several SAMs, with names that begin with {format_names(prefixes)}. Save one of them alone."
            )
        if prefixes:
            [prefix] = prefixes
            kept = {name.removeprefix(prefix): part[name] for name in names if name.startswith(prefix)}
            told = [f"under {' / '.join(keys)}"] if keys else []
            told += [f"with {prefix!r} before each name"] if prefix else []
            sentence = f"The weights of SAM in {path} are {', '.join(told)}." if told else ""
            return {name: value for name, value in kept.items() if isinstance(value, Tensor)}, sentence
    return {name: checkpoint[name] for name in weight_names(checkpoint) if isinstance(checkpoint[name], Tensor)}, ""


def _parts(part: dict[str, Any], keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The checkpoint and the parts that may be the weights of a network, two levels deep."""
    yield keys, part
    for name in WRAPPERS:
        inner = part.get(name)
        if len(keys) < 2 and isinstance(inner, dict):
            yield from _parts(inner, (*keys, name))
