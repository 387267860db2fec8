"""`model.json`, beside the ONNX files: what prediction needs of dataset and plan. Imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hrmedseg_onnx.errors import CheckpointError
from hrmedseg_onnx.files import read_json, write_atomically
from hrmedseg_onnx.json_values import is_dict, is_int, is_list, is_number, is_text

__all__ = [
    "FORMAT",
    "Normalization",
    "READERS",
    "SCHEMES",
    "SIDECAR",
    "Sidecar",
]

SIDECAR = "model.json"
FORMAT = 1

SCHEMES = (
    "ZScoreNormalization",
    "CTNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
    "NoNormalization",
)
"""nnU-Net's normalizations that `normalization.py` implements."""

READERS = ("NaturalImage2DIO", "Tiff3DIO", "SimpleITKIO", "NibabelIO", "HRMedSegDicomIO")
"""Readers of nnU-Net and nnunet_hrmedseg that `image_files.py` implements."""

INTENSITIES = ("mean", "std", "percentile_00_5", "percentile_99_5")


@dataclass(frozen=True)
class Normalization:
    """Normalization of one channel.

    Attributes:
        scheme: nnU-Net's name, one of `SCHEMES`.
        use_mask: compute mean and deviation inside the non-zero region (ZScoreNormalization).
        intensities: statistics of the foreground of the training set, with the keys `INTENSITIES` (CTNormalization);
            else None.
    """

    scheme: str
    use_mask: bool
    intensities: dict[str, float] | None = None


@dataclass(frozen=True)
class Sidecar:
    """Content of `model.json`.

    Attributes:
        network, trainer, dataset: origin of the model, in nnU-Net's names.
        channels: names of the image channels, in order.
        normalization: one entry for each channel.
        canvas: (H, W) in pixels, the input size of the network.
        transpose_forward: order of the axes (z, y, x) that the model was trained with.
        labels: as in dataset.json: name -> value, or values of a region.
        regions_class_order: as in dataset.json; None without regions.
        mirror_axes: axes that prediction may mirror: 0 (rows), 1 (columns).
        image_reader: nnU-Net's name, one of `READERS`.
        file_ending: ending of images and label maps, such as ".png".
        weights: number format in which the ONNX files store weights.
        folds: fold -> name of its ONNX file.
        logit_difference: fold -> largest difference from the network in PyTorch, on random input.
    """

    network: str
    trainer: str
    dataset: str
    channels: list[str]
    normalization: list[Normalization]
    canvas: list[int]
    transpose_forward: list[int]
    labels: dict[str, int | list[int]]
    regions_class_order: list[int] | None
    mirror_axes: list[int]
    image_reader: str
    file_ending: str
    weights: str
    folds: dict[str, str]
    logit_difference: dict[str, float]

    @property
    def has_regions(self) -> bool:
        return any(isinstance(value, list) and len(value) > 1 for value in self.labels.values())

    @property
    def num_labels(self) -> int:
        """Number of label values, including the background and excluding the ignore label."""
        values: set[int] = set()
        for name, value in self.labels.items():
            if name != "ignore":
                values.update(value if isinstance(value, list) else [value])
        return len(values)

    @property
    def num_outputs(self) -> int:
        """Number of channels of the logits: one for each label, or for each region."""
        return len(self.regions_class_order or []) if self.has_regions else self.num_labels

    def write(self, folder: Path) -> None:
        content = {"format": FORMAT, **asdict(self)}
        write_atomically(folder / SIDECAR, (json.dumps(content, indent=2) + "\n").encode())

    @staticmethod
    def read(folder: Path) -> Sidecar:
        """Read and check `model.json`.

        Raises:
            CheckpointError: it does not exist, has another format, or is invalid.
        """
        file = folder / SIDECAR
        try:
            content = read_json(file)
        except OSError as error:
            raise CheckpointError(
                f"{file} cannot be read ({error.strerror}). Give the folder that hrmedseg export --onnx wrote."
            ) from None
        except ValueError as error:
            raise CheckpointError(f"{file} is not valid JSON ({error}). Export the model again.") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else None
            raise CheckpointError(
                f"{file} has format {found!r}; this version of the package reads format {FORMAT}. Export the model "
                f"again, or install the version that it was exported with."
            )
        try:
            return _checked(content)
        except _InvalidSidecarError as wrong:
            raise CheckpointError(f"{file}: {wrong}. Export the model again.") from None


class _InvalidSidecarError(ValueError):
    pass


def _checked(content: dict[str, Any]) -> Sidecar:
    names = [field.name for field in fields(Sidecar)]
    missing = [name for name in names if name not in content]
    if missing:
        raise _InvalidSidecarError(f"it lacks {', '.join(missing)}")
    for name, (holds, what) in _EXPECTED.items():
        if not holds(content[name]):
            raise _InvalidSidecarError(f"{name} is {content[name]!r}; it must be {what}")
    if len(content["normalization"]) != len(content["channels"]):
        raise _InvalidSidecarError(
            f"{len(content['channels'])} channels have {len(content['normalization'])} normalizations"
        )
    normalization = [_normalization(entry) for entry in content["normalization"]]
    sidecar = Sidecar(**{name: content[name] for name in names if name != "normalization"}, normalization=normalization)
    if sidecar.has_regions and sidecar.regions_class_order is None:
        raise _InvalidSidecarError("labels has regions, but regions_class_order is null")
    return sidecar


def _normalization(entry: Any) -> Normalization:
    scheme = entry.get("scheme") if isinstance(entry, dict) else None
    if scheme not in SCHEMES:
        raise _InvalidSidecarError(f"normalization {scheme!r} is unknown; there are {', '.join(SCHEMES)}")
    intensities = entry.get("intensities")
    known = intensities if isinstance(intensities, dict) else {}
    if scheme == "CTNormalization" and not all(is_number(known.get(name)) for name in INTENSITIES):
        raise _InvalidSidecarError(f"CTNormalization needs intensities with numbers for {', '.join(INTENSITIES)}")
    return Normalization(scheme, bool(entry.get("use_mask")), intensities)


_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "network": (is_text, "a name"),
    "trainer": (is_text, "a name"),
    "dataset": (is_text, "a name"),
    "channels": (lambda v: is_list(v, is_text) and bool(v), "a list of names"),
    "normalization": (lambda v: isinstance(v, list), "a list"),
    "canvas": (
        lambda v: is_list(v, is_int) and len(v) == 2 and all(side > 0 and side % 16 == 0 for side in v),
        "height and width, multiples of 16",
    ),
    "transpose_forward": (lambda v: is_list(v, is_int) and sorted(v) == [0, 1, 2], "an order of the axes 0, 1, 2"),
    "labels": (
        lambda v: is_dict(v, lambda i: is_int(i) or is_list(i, is_int)) and v.get("background") == 0,
        "names with label values, background among them as 0",
    ),
    "regions_class_order": (lambda v: v is None or is_list(v, is_int), "a list of label values, or null"),
    "mirror_axes": (lambda v: is_list(v, lambda axis: axis in (0, 1)), "a list of 0 and 1"),
    "image_reader": (lambda v: v in READERS, f"one of {', '.join(READERS)}"),
    "file_ending": (lambda v: is_text(v) and v[:1] == "." and Path(f"a{v}").name == f"a{v}", "an ending such as .png"),
    "weights": (is_text, "a name"),
    "folds": (
        lambda v: is_dict(v, lambda i: is_text(i) and Path(i).name == i),
        "folds with the names of their files",
    ),
    "logit_difference": (lambda v: isinstance(v, dict), "numbers"),
}
