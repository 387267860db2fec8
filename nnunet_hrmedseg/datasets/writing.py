"""Write images into a dataset, or for its models: copied where nnU-Net reads the same pixels, else converted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from nnunet_hrmedseg.datasets.pixels import orientation

__all__ = ["write_image", "write_pixels"]


def write_image(place: Path, file: Path, pixels: np.ndarray, channels: int, *, link: bool = False) -> None:
    """Write an image in the format of the suffix of `place`.

    Args:
        place: file to write.
        file: the original; DICOM files are copied as they are.
        pixels: (H, W) or (H, W, 3), `read_image` of the original.
        channels: 1 or 3.
        link: hard-link a file that needs no conversion, instead of copying it.
    """
    if place.suffix == ".dcm" or _is_usable(file, place.suffix, channels):
        _link_or_copy(file, place, link)
    elif channels == 3 and pixels.ndim == 2:
        write_pixels(place, np.repeat(pixels[..., None], 3, axis=-1))
    else:
        write_pixels(place, pixels[..., 0] if channels == 1 and pixels.ndim == 3 else pixels)


def write_pixels(place: Path, pixels: np.ndarray) -> None:
    """Write (H, W) or (H, W, 3) as a TIFF file, or in another format that Pillow writes."""
    if place.suffix in (".tif", ".tiff"):
        photometric = "rgb" if pixels.ndim == 3 else "minisblack"
        tifffile.imwrite(place, pixels, photometric=photometric, compression="zlib")
    else:
        Image.fromarray(np.ascontiguousarray(pixels)).save(place)


def _is_usable(file: Path, ending: str, channels: int) -> bool:
    """Return whether nnU-Net reads the same pixels from the file as `read_image`."""
    if ending != ".png" or file.suffix.lower() != ".png" or orientation(file) != 1:
        return False
    with Image.open(file) as image:
        if image.format != "PNG":  # of a GIF, nnU-Net reads a list of frames
            return False
        return image.mode == ("L" if channels == 1 else "RGB") or (channels == 1 and image.mode.startswith("I;16"))


def _link_or_copy(file: Path, place: Path, link: bool) -> None:
    if link:
        try:
            os.link(os.path.realpath(file), place)
            return
        except OSError:  # another file system, or one without hard links
            pass
    shutil.copyfile(file, place)
