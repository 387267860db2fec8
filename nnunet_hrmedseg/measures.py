"""Measures per case and class: Dice, IoU, distances of surfaces, Dice per slice, and matched objects.

Dice and IoU use nnU-Net's counts and formulas, so they equal its summary.json to the last digit. Surface measures are
computed by MONAI. Rules for empty masks:

| truth and prediction | Dice, IoU, Dice per slice | NSD | HD95, HD |
|---|---|---|---|
| both empty | undefined, left out of means | undefined | undefined |
| one of them empty | 0 | 0 | the image's diagonal, the largest possible distance |

Dice per slice is only for volumes: the mean over the slices along the first axis of the reader, with the same rules
for each slice. F1 and panoptic quality are only for datasets with border labels (hrmedseg dataset --instances): objects
are separated in truth and prediction, and count for the class of their cores.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_tp_fp_fn_tn, region_or_label_to_mask
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_hrmedseg.errors import DataError, PlanError, format_names
from nnunet_hrmedseg.io.instances import BORDER, CORE, INSTANCES, match_instances, separate_instances
from nnunet_hrmedseg.io.json_values import label_value
from nnunet_hrmedseg.io.raw_cases import find_reader
from nnunet_hrmedseg.io.stored_images import check_format

__all__ = [
    "Label",
    "MEASURES",
    "Measure",
    "Task",
    "slice_dice",
    "surface_library",
    "surface_measures",
    "surface_measures_available",
]

Label = int | tuple[int, ...]


@dataclass(frozen=True)
class Measure:
    """A row of the table of measures."""

    title: str
    higher_is_better: bool = True
    has_unit: bool = False  # pixels or mm
    on_surfaces: bool = False  # needs MONAI
    of_volumes: bool = False  # only for volumes
    of_instances: bool = False  # only for objects in images


MEASURES = {
    "Dice": Measure("Dice"),
    "IoU": Measure("IoU"),
    "SliceDice": Measure("Dice per slice", of_volumes=True),
    "NSD": Measure("Normalized surface Dice", on_surfaces=True),
    "HD95": Measure("95 % Hausdorff distance", higher_is_better=False, has_unit=True, on_surfaces=True),
    "HD": Measure("Hausdorff distance (maximum)", higher_is_better=False, has_unit=True, on_surfaces=True),
    "F1": Measure("F1 of objects (IoU > 0.5)", of_instances=True),
    "PQ": Measure("Panoptic quality", of_instances=True),
}


@dataclass(frozen=True)
class Task:
    """How the cases of a dataset are read and measured.

    Attributes:
        reader: nnU-Net's reader of label maps.
        classes: class -> label, or labels of a region.
        ignore_label: of pixels that do not count.
        tolerance: of NSD, in the unit.
        surfaces: whether to compute the measures that need MONAI.
        unit: of distances: px or mm.
        volumes: whether to compute the measures of volumes.
        instances: whether to compute the measures of objects.
    """

    reader: BaseReaderWriter
    classes: Mapping[str, Label]
    ignore_label: int | None
    tolerance: float
    surfaces: bool
    unit: str
    volumes: bool = False
    instances: bool = False

    @classmethod
    def from_dataset(cls, dataset_json: dict[str, Any], example: Path, tolerance: float, surfaces: bool) -> Task:
        """Make a task from a dataset.json and one reference segmentation, which determine reader and measures.

        Raises:
            PlanError: dataset.json lists no class.
            DataError: nnU-Net has no reader for the file.
        """
        labels = {name: label_value(name, value) for name, value in dataset_json["labels"].items()}
        ignore = labels.pop("ignore", None)
        classes = {name: label for name, label in labels.items() if label not in (0, (0,))}
        if not classes:
            raise PlanError(f"dataset.json lists no class to measure, but only {format_names([*labels])}.")
        try:
            reader = find_reader(dataset_json, str(example))()
        except RuntimeError as error:
            raise DataError(f"nnU-Net has no reader for {example}: {error}") from error
        unit = "px" if type(reader).__name__ == "NaturalImage2DIO" else "mm"
        try:
            volumes = reader.read_seg(str(example))[0].shape[1] > 1
        except Exception:  # readers raise anything; `measure` names the file
            volumes = False
        instances = not volumes and dataset_json.get(INSTANCES) == {"core": CORE, "border": BORDER}
        return cls(reader, classes, ignore, tolerance, surfaces, unit, volumes, instances)

    @property
    def measures(self) -> list[str]:
        """Names of the measures that are computed."""
        return [
            name
            for name, measure in MEASURES.items()
            if self.surfaces >= measure.on_surfaces
            and self.volumes >= measure.of_volumes
            and self.instances >= measure.of_instances
        ]

    def measure(self, truth: Path, prediction: Path) -> dict[str, dict[str, float]]:
        """Return class -> measure -> value, and the areas or volumes in truth and prediction as size_truth and size.

        Raises:
            DataError: one of the two files cannot be read, or their sizes differ.
        """
        try:
            return self._measure(truth, prediction)
        except Exception as error:  # readers and metrics raise anything, without the name of the file
            raise DataError(
                f"{prediction} cannot be compared with {truth} ({type(error).__name__}: {error}). One of them may be "
                "damaged, or have another size."
            ) from error

    def _measure(self, truth: Path, prediction: Path) -> dict[str, dict[str, float]]:
        for file in (truth, prediction):
            check_format(str(file))
        (reference, properties), (predicted, _) = (self.reader.read_seg(str(file)) for file in (truth, prediction))
        seen = np.ones(reference[0].shape, bool) if self.ignore_label is None else reference[0] != self.ignore_label
        measured = {}
        for name, label in self.classes.items():
            masks = [region_or_label_to_mask(image[0], label) for image in (reference, predicted)]
            measured[name] = self.measure_masks(masks[0], masks[1], seen, properties["spacing"])
        if self.instances:
            objects = match_instances(separate_instances(reference[0, 0]), separate_instances(predicted[0, 0]))
            for name, label in self.classes.items():
                measured[name] |= objects if label == CORE else dict.fromkeys(objects, math.nan)
        return measured

    def measure_masks(
        self, truth: np.ndarray, predicted: np.ndarray, seen: np.ndarray, spacing: Sequence[float]
    ) -> dict[str, float]:
        """Return the measures of one class, size_truth and size.

        Args:
            truth: (Z, H, W) bool.
            predicted: (Z, H, W) bool.
            seen: (Z, H, W) bool; pixels that count.
            spacing: of the three axes.
        """
        slices = {"SliceDice": slice_dice(truth & seen, predicted & seen)} if self.volumes else {}
        if len(truth) == 1:  # a 2D image, whose thickness in nnU-Net is not a size
            truth, predicted, seen, spacing = truth[0], predicted[0], seen[0], spacing[1:]
        tp, fp, fn, _ = compute_tp_fp_fn_tn(truth, predicted, ~seen)
        empty, element = tp + fp + fn == 0, math.prod(spacing)
        measured = {
            "Dice": math.nan if empty else float(2 * tp / (2 * tp + fp + fn)),
            "IoU": math.nan if empty else float(tp / (tp + fp + fn)),
            "size_truth": (fn + tp) * element,
            "size": (fp + tp) * element,
            **slices,
        }
        return measured | (
            surface_measures(truth & seen, predicted & seen, spacing, self.tolerance) if self.surfaces else {}
        )


def slice_dice(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Return the mean Dice of the slices of two boolean masks (Z, H, W) in which at least one of them is not empty."""
    sizes = truth.sum((1, 2)) + prediction.sum((1, 2))
    if not sizes.any():
        return math.nan
    return float((2 * (truth & prediction).sum((1, 2))[sizes > 0] / sizes[sizes > 0]).mean())


def surface_measures(
    truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], tolerance: float
) -> dict[str, float]:
    """Return HD95, HD and NSD of two boolean masks, 2D or 3D, in the unit of `spacing` and `tolerance`.

    HD95 is the larger of the two directions' 95th percentiles of distances between boundary pixels, HD the largest of
    all these distances. NSD is the part of both boundaries, by length (area), that lies within `tolerance` of the other
    (Nikolov et al., 2018).
    """
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    if not truth.any() and not prediction.any():
        return {"HD95": math.nan, "HD": math.nan, "NSD": math.nan}
    if not truth.any() or not prediction.any():
        diagonal = math.hypot(*(n * s for n, s in zip(truth.shape, spacing, strict=True)))
        return {"HD95": diagonal, "HD": diagonal, "NSD": 0.0}
    predicted, reference = (torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (prediction, truth))
    sizes = [float(size) for size in spacing]
    with warnings.catch_warnings():  # about the next version of MONAI
        warnings.simplefilter("ignore", FutureWarning)
        hd95, hd = (
            compute_hausdorff_distance(
                predicted, reference, include_background=True, percentile=percentile, spacing=sizes
            )
            for percentile in (95, None)
        )
        nsd = compute_surface_dice(
            predicted, reference, [tolerance], include_background=True, use_subvoxels=True, spacing=sizes
        )
    return {"HD95": float(hd95), "HD": float(hd), "NSD": float(nsd)}


def surface_measures_available() -> bool:
    """Return whether MONAI is installed."""
    try:
        import monai.metrics  # noqa: F401
    except ImportError:
        return False
    return True


def surface_library() -> str:
    """Return name and version of the library that computes surface measures, which differ between libraries."""
    import monai

    return f"MONAI {monai.__version__}"
