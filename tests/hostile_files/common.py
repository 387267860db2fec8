"""Helpers for the tests of hostile files."""

import hashlib
import json
import pickle
from pathlib import Path

from nnunet_hrmedseg.weights.student import Normalize, encoder_architecture
from tests.teachers.tiny_teachers import Payload

ARCHITECTURE = encoder_architecture(embed_dim=24, depth=2, decoder_dim=16)
CARD = {"name": "tiny", "architecture": ARCHITECTURE, "normalization": Normalize("zscore").card()}
SIZE = (64, 64)
DESCRIPTION = {
    "channel_names": {"0": "x"},
    "labels": {"background": 0, "a": 1},
    "numTraining": 1,
    "file_ending": ".png",
}


def hostile(file: Path, marker: Path) -> Path:
    """Write a file whose payload pickle executes, so that the other tests are meaningful."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(Payload(marker)))
    return file


def with_card(file: Path) -> Path:
    card = {"format": 1, "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), **CARD}
    file.with_suffix(".json").write_text(json.dumps(card))
    return file
