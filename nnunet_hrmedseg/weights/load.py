"""Load an encoder from any of the places and formats that a training can start from."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from nnunet_hrmedseg.io.hub import HubCopy, download, is_on_hub
from nnunet_hrmedseg.weights.encoder_file import EncoderFile, read_encoder_file
from nnunet_hrmedseg.weights.published import PUBLISHED_SUFFIXES, read_published

__all__ = ["load_encoder"]


def load_encoder(path: str | os.PathLike) -> EncoderFile:
    """Load an encoder and check it against its card. Nothing in a file is executed.

    Args:
        path: NAME.safetensors with NAME.json beside it; or the published SAM_PFD_10K.pth, which is converted in
            memory; or the name of either on the hub, hf://OWNER/NAME[@REVISION]/FILE.

    Returns:
        Weights and card.

    Raises:
        CheckpointError: The file is missing, is not an encoder file, or is not the one that its card describes.
        SetupError: A name on the hub without the package huggingface_hub, or without a connection.

    Examples:
        >>> from nnunet_hrmedseg import load_encoder
        >>> from nnunet_hrmedseg.weights import BUNDLED
        >>> encoder = load_encoder(BUNDLED)
        >>> encoder.architecture["embed_dim"], encoder.architecture["depth"]
        (96, 10)
        >>> encoder.normalization["scheme"]
        'zscore'
    """
    if is_on_hub(path):
        copy = _download(str(path))
        return replace(load_encoder(copy.path), hub=copy)
    path = Path(path).expanduser()  # a shell leaves ~ in plans, and in options with =, as it is
    if path.suffix in PUBLISHED_SUFFIXES and path.is_file():
        return read_published(path)
    return read_encoder_file(path)


def _download(name: str) -> HubCopy:
    """Return the local copy of an encoder on the hub, beside its card if it has one, both of the same commit."""
    if not name.endswith(".safetensors"):
        return download(name)
    # the card first: a large file that is not an encoder is not downloaded
    card = download(f"{name.removesuffix('.safetensors')}.json")
    weights = download(f"{card.pinned.removesuffix('.json')}.safetensors")
    return HubCopy(name, card.commit, weights.path)
