"""Separate the objects in label maps with borders, such as predictions."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from tqdm import tqdm

from nnunet_hrmedseg.datasets.mask_pixels import read_mask
from nnunet_hrmedseg.datasets.matching import list_images
from nnunet_hrmedseg.datasets.pixels import stem
from nnunet_hrmedseg.errors import DataError, HRMedSegError, SetupError, format_names
from nnunet_hrmedseg.io.files import make_output_dir
from nnunet_hrmedseg.io.instances import BORDER, CORE, separate_instances

__all__ = ["SeparatedObjects", "separate_objects"]


@dataclass(frozen=True)
class SeparatedObjects:
    """Files of numbered objects.

    Attributes:
        folder: of the files.
        counts: case -> number of objects.
    """

    folder: Path
    counts: dict[str, int]


def separate_objects(labels: str | os.PathLike[str], output: str | os.PathLike[str]) -> SeparatedObjects:
    """Write an image of numbered objects, a TIFF of 16 or 32 bits, for each label map in a folder.

    Args:
        labels: folder of label maps with 0 background, 1 core and 2 border, as models of datasets from
            `make_dataset(..., instances=True)` predict them.
        output: folder for the images, which have the names of the label maps.

    Raises:
        DataError: there are no label maps, several have the same name, or some cannot be read or have other values;
            all in one message.
        SetupError: the output cannot be written, or is the folder of the label maps or below it.

    Examples:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from PIL import Image
        >>> from nnunet_hrmedseg import separate_objects
        >>> labels = np.zeros((32, 32), np.uint8)
        >>> labels[4:20, 4:12] = labels[4:20, 12:20] = 2
        >>> labels[5:19, 5:11] = labels[5:19, 13:19] = 1
        >>> Path("predictions").mkdir()
        >>> Image.fromarray(labels).save("predictions/case.png")
        >>> separate_objects("predictions", "objects").counts
        {'case': 2}
    """
    files, _ = list_images(Path(labels))
    if not files:
        raise DataError(f"{labels} has no label maps.")
    twice = [name for name, count in Counter(map(stem, files)).items() if count > 1]
    if twice:
        raise DataError(
            f"Several label maps in {labels} have the same name: {format_names(twice)}. Rename all but one."
        )
    folder = Path(output)
    if folder.resolve().is_relative_to(Path(labels).resolve()):
        raise SetupError(
            f"Numbered objects in {output} would replace label maps in {labels}, or be taken for them the next time. "
            f"Give -o another folder."
        )
    make_output_dir(folder)
    counts: dict[str, int] = {}
    errors = []
    for file in tqdm(files, desc="Separating", unit="case", leave=False, disable=None):
        try:
            objects = separate_instances(_read_labels(file))
        except HRMedSegError as error:
            errors.append(str(error))
            continue
        counts[stem(file)] = int(objects.max())
        dtype = np.uint16 if counts[stem(file)] <= np.iinfo(np.uint16).max else np.uint32
        tifffile.imwrite(folder / f"{stem(file)}.tif", objects.astype(dtype), compression="zlib")
    if errors:
        raise DataError(f"{len(errors)} of {len(files)} label maps were left out:\n  " + "\n  ".join(errors))
    return SeparatedObjects(folder, counts)


def _read_labels(file: Path) -> np.ndarray:
    pixels = read_mask(file)
    values = set(np.unique(pixels).tolist())
    if pixels.ndim != 2 or not values <= {0, CORE, BORDER}:
        raise DataError(f"{file} is not a label map with the values 0, {CORE} (core) and {BORDER} (border).")
    return pixels
