"""How thick the labeled objects of a dataset are: what decides which canvas can show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.plans.raw_cases import RawCase, find_reader

__all__ = ["MOST_CASES", "Thickness", "measure_thickness", "object_thickness"]

MOST_CASES = 50  # whose labels are read, evenly spaced
SMALL = 10  # percentile: one object in ten is thinner


@dataclass(frozen=True)
class Thickness:
    """Thickness of the thin objects of a class, as a part of the image's shorter side.

    Attributes:
        part: 10th percentile over objects.
        objects: how many were measured.
    """

    part: float
    objects: int


def object_thickness(mask: np.ndarray) -> list[float]:
    """Return the thickness of each connected object in pixels: the diameter of the largest disc within it.

    Args:
        mask: (H, W) bool.
    """
    objects, count = ndimage.label(mask, np.ones((3, 3)))
    if not count:
        return []
    padded = np.pad(mask, 1)  # objects end at the border of the image
    depth = ndimage.distance_transform_edt(padded)[1:-1, 1:-1]
    deepest = ndimage.maximum(depth, objects, np.arange(1, count + 1))
    return (2 * np.asarray(deepest) - 1).tolist()


def measure_thickness(
    cases: Mapping[str, RawCase], labels: Mapping[str, int | Sequence[int]], dataset_json: dict
) -> dict[str, Thickness]:
    """Return the thickness of the objects of each class, measured on slices of up to 50 cases.

    Args:
        cases: raw cases by name.
        labels: class -> value or values (a region).
        dataset_json: of the dataset.

    Raises:
        HRMedSegError: a label file that cannot be read.
    """
    names = sorted(cases)
    chosen = [names[i] for i in np.linspace(0, len(names) - 1, min(MOST_CASES, len(names))).astype(int)]
    parts: dict[str, list[float]] = {name: [] for name in labels}
    reader = None
    for case in chosen:
        try:
            reader = reader or find_reader(dataset_json, cases[case].label)()
            volume = reader.read_seg(cases[case].label)[0][0]
        except Exception as error:  # a damaged file makes readers raise anything
            raise HRMedSegError(f"The labels {cases[case].label} cannot be read ({error}).") from error
        for plane in volume:
            for name, values in labels.items():
                mask = np.isin(plane, values)
                parts[name] += [thickness / min(plane.shape) for thickness in object_thickness(mask)]
    return {name: Thickness(float(np.percentile(own, SMALL)), len(own)) for name, own in parts.items() if own}
