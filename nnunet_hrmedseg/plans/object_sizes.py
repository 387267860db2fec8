"""Measure the thickness of the labeled objects of a dataset, which decides which canvas can show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_hrmedseg.errors import DataError
from nnunet_hrmedseg.io.raw_cases import RawCase, find_reader

__all__ = ["MOST_CASES", "Thickness", "measure_thickness", "object_thickness"]

MOST_CASES = 50  # number of cases whose labels are read, evenly spaced
THIN_SHARE = 0.1  # of the area of a class; thin objects of a smaller share, such as stray pixels, are ignored


@dataclass(frozen=True)
class Thickness:
    """Thickness of the thin objects of a class, as a part of the image's shorter side.

    Attributes:
        part: thickness at which a tenth of the area of the class lies in objects that are thinner or as thin.
        objects: number of measured objects.
    """

    part: float
    objects: int


def object_thickness(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the thickness of each connected object, the diameter of the largest disc within it, and its area.

    Args:
        mask: (H, W) bool.

    Returns:
        (n,) thickness in pixels and (n,) area in pixels.
    """
    objects, count = ndimage.label(mask, np.ones((3, 3)))
    if not count:
        return np.zeros(0), np.zeros(0)
    padded = np.pad(mask, 1)  # objects end at the border of the image
    depth = ndimage.distance_transform_edt(padded)[1:-1, 1:-1]
    deepest = ndimage.maximum(depth, objects, np.arange(1, count + 1))
    return 2 * np.asarray(deepest) - 1, np.bincount(objects.ravel())[1:].astype(float)


def measure_thickness(
    cases: Mapping[str, RawCase], labels: Mapping[str, int | Sequence[int]], dataset_json: dict
) -> dict[str, Thickness]:
    """Return the thickness of the objects of each class, measured on slices of up to 50 cases.

    Args:
        cases: raw cases by name.
        labels: class -> value or values (a region).
        dataset_json: of the dataset.

    Raises:
        DataError: a label file that cannot be read.
    """
    names = sorted(cases)
    chosen = [names[i] for i in np.linspace(0, len(names) - 1, min(MOST_CASES, len(names))).astype(int)]
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in labels}
    reader = None
    for case in chosen:
        try:
            reader = reader or find_reader(dataset_json, cases[case].label)()
            volume = reader.read_seg(cases[case].label)[0][0]
        except Exception as error:  # a damaged file makes readers raise anything
            raise DataError(f"The labels {cases[case].label} cannot be read ({error}).") from error
        for plane in volume:
            for name, values in labels.items():
                thickness, area = object_thickness(np.isin(plane, values))
                found[name].append((thickness / min(plane.shape), area))
    summed = {name: [np.concatenate(values) for values in zip(*own, strict=True)] for name, own in found.items()}
    return {name: _thin(parts, areas) for name, (parts, areas) in summed.items() if len(parts)}


def _thin(parts: np.ndarray, areas: np.ndarray) -> Thickness:
    order = np.argsort(parts)
    shares = np.cumsum(areas[order]) / areas.sum()
    return Thickness(float(parts[order][np.searchsorted(shares, THIN_SHARE)]), len(parts))
