"""Measure the thickness of the labeled objects of a dataset, which decides which canvas can show them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from nnunet_hrmedseg.errors import DataError
from nnunet_hrmedseg.io.raw_cases import RawCase, find_reader

__all__ = ["MOST_CASES", "MOST_SLICES", "Thickness", "measure_thickness", "object_thickness"]

MOST_CASES = 50  # number of cases whose labels are read, evenly spaced
MOST_SLICES = 500  # number of slices of these cases that are measured, as many of each case, evenly spaced
THIN_SHARE = 0.1  # of the area of a class; thin objects of a smaller share, such as stray pixels, are ignored
CALL_PIXELS = 200  # number of pixels whose distances are computed in the time that a call takes in any case


@dataclass(frozen=True)
class Thickness:
    """Thickness of the thin objects of a class on each canvas.

    Attributes:
        pixels: canvas (height, width) -> thickness in canvas pixels at which a tenth of the area of the class lies in
            objects that are thinner or as thin.
        objects: number of measured objects.
    """

    pixels: Mapping[tuple[int, int], float]
    objects: int


def object_thickness(mask: np.ndarray, scale: tuple[float, float] = (1.0, 1.0)) -> tuple[np.ndarray, np.ndarray]:
    """Return the thickness of each connected object, the diameter of the largest disc within it, and its area.

    Args:
        mask: (H, W) bool.
        scale: factors by which height and width are resized before the thickness is measured.

    Returns:
        (n,) thickness in pixels after resizing, and (n,) area in pixels of the mask.
    """
    objects, count = ndimage.label(mask, np.ones((3, 3)))
    if not count:
        return np.zeros(0), np.zeros(0)
    areas = np.bincount(objects.ravel())[1:].astype(float)
    boxes = ndimage.find_objects(objects)
    if sum(CALL_PIXELS + objects[box].size for box in boxes) > mask.size:  # many small objects: one call is faster
        return _disc_diameters(objects, np.arange(1, count + 1), scale), areas
    diameters = [_disc_diameters(objects[box] == number, np.ones(1), scale) for number, box in enumerate(boxes, 1)]
    return np.concatenate(diameters), areas


def _disc_diameters(objects: np.ndarray, numbers: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Return the diameter of the largest disc within each of the numbered objects, which do not touch.

    The center of the disc is that of a pixel in objects of odd width, and a corner between pixels in those of even
    width.
    """
    padded = np.pad(objects, 1)  # objects end at the border of the image
    depth, nearest = ndimage.distance_transform_edt(padded, scale, return_indices=True)
    deepest = np.asarray(ndimage.maximum_position(depth, padded, numbers)).T
    depths = depth[tuple(deepest)]
    # depths reach the center of the first pixel outside: half a pixel too far on either side, in their direction
    pixels = np.hypot(*(nearest[(slice(None), *deepest)] - deepest))
    around_pixels = depths * (2 - 1 / pixels)
    # corners within an object; the distance to the corners on its outline is exact
    corners = np.minimum(np.minimum(padded[1:, 1:], padded[:-1, 1:]), np.minimum(padded[1:, :-1], padded[:-1, :-1]))
    around_corners = 2 * np.asarray(ndimage.maximum(ndimage.distance_transform_edt(corners, scale), corners, numbers))
    return np.maximum(around_pixels, around_corners)


def measure_thickness(
    cases: Mapping[str, RawCase],
    labels: Mapping[str, int | Sequence[int]],
    dataset_json: dict,
    canvases: Collection[tuple[int, int]],
    transpose_forward: Sequence[int] = (0, 1, 2),
) -> dict[str, Thickness]:
    """Return the thickness of the objects of each class on each canvas, measured on slices of up to 50 cases.

    Args:
        cases: raw cases by name.
        labels: class -> value or values (a region).
        dataset_json: of the dataset.
        canvases: (height, width) in pixels.
        transpose_forward: order of the axes in preprocessing, as in the plans; slices lie along the first one.

    Raises:
        DataError: a label file that cannot be read.
    """
    names = sorted(cases)
    chosen = [names[i] for i in _evenly_spaced(len(names), MOST_CASES)]
    values = {name: np.atleast_1d(value).tolist() for name, value in labels.items()}
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in labels}
    reader = None
    for case in tqdm(chosen, "Measuring objects", unit="case", leave=False, delay=2):
        try:
            reader = reader or find_reader(dataset_json, cases[case].label)()
            volume = reader.read_seg(cases[case].label)[0][0].transpose(transpose_forward)
        except Exception as error:  # a damaged file makes readers raise anything
            raise DataError(f"The labels {cases[case].label} cannot be read ({error}).") from error
        for plane in _labeled_slices(volume, values, MOST_SLICES // len(chosen)):
            for name, mask in _masks(plane, values):
                found[name].append(_measure(mask, plane.shape, canvases))
    summed = {
        name: [np.concatenate(parts, -1) for parts in zip(*own, strict=True)] for name, own in found.items() if own
    }
    return {
        name: Thickness({canvas: _thin(own, areas) for canvas, own in zip(canvases, rows, strict=True)}, len(areas))
        for name, (rows, areas) in summed.items()
    }


def _evenly_spaced(count: int, most: int) -> list[int]:
    return np.linspace(0, count - 1, min(most, count)).astype(int).tolist()


def _labeled_slices(volume: np.ndarray, values: Mapping[str, list[int]], most: int) -> Iterator[np.ndarray]:
    """Yield slices that have one of the labels, evenly spaced, with all other labels set to 0."""
    known = sorted({value for own in values.values() for value in own if value > 0})
    if not known:
        return
    kept = np.zeros(known[-1] + 2, np.int32)  # the first and the last entry stand for all labels outside the range
    kept[known] = known

    def known_labels(index: int) -> np.ndarray:
        return kept.take(volume[index].astype(np.int32), mode="clip")

    labeled = [index for index in range(len(volume)) if known_labels(index).any()]
    for index in _evenly_spaced(len(labeled), most):
        yield known_labels(labeled[index])


def _masks(plane: np.ndarray, values: Mapping[str, list[int]]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the mask of each class that the slice has, cropped to the class."""
    boxes = dict(enumerate(ndimage.find_objects(plane), 1))
    for name, own in values.items():
        present = [box for box in map(boxes.get, own) if box]
        if present:
            box = tuple(
                slice(min(s.start for s in side), max(s.stop for s in side)) for side in zip(*present, strict=True)
            )
            yield name, np.isin(plane[box], own)


def _measure(
    mask: np.ndarray, image: Sequence[int], canvases: Collection[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (canvases, n) thickness in canvas pixels and (n,) area of the objects in an image of this size."""
    measured: dict[float, tuple[np.ndarray, np.ndarray]] = {}
    rows = []
    for canvas in canvases:
        vertical, horizontal = (of_canvas / of_image for of_canvas, of_image in zip(canvas, image, strict=True))
        aspect = round(vertical / horizontal, 9)  # canvases of the same shape differ by a factor only
        if aspect not in measured:
            measured[aspect] = object_thickness(mask, (aspect, 1.0))
        thickness, areas = measured[aspect]
        rows.append(thickness * horizontal)
    return np.stack(rows), areas


def _thin(thickness: np.ndarray, areas: np.ndarray) -> float:
    order = np.argsort(thickness)
    shares = np.cumsum(areas[order]) / areas.sum()
    return float(thickness[order][np.searchsorted(shares, THIN_SHARE)])
