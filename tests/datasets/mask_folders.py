"""Folders of small images and masks."""

from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["EMPTY", "LEFT", "RIGHT", "folder"]

LEFT, RIGHT, EMPTY = (np.array([row], np.uint8) for row in ([255, 0, 0, 0], [0, 0, 255, 255], [0, 0, 0, 0]))


def folder(tmp_path: Path, name: str, files: dict[str, np.ndarray]) -> Path:
    """Write the files, and return the folder."""
    for file, pixels in files.items():
        place = tmp_path / name / file
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(pixels, np.uint8)).save(place)
    return tmp_path / name
