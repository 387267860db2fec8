"""nnU-Net's prediction with numpy and onnxruntime, without torch and nnU-Net."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hrmedseg_onnx.errors import CheckpointError, DataError, format_shape
from hrmedseg_onnx.image_check import check_image
from hrmedseg_onnx.image_files import DICOM_READER, PICTURE_READER, read_image
from hrmedseg_onnx.labels import initial_probabilities, label_values, probabilities
from hrmedseg_onnx.nonzero import bounding_box
from hrmedseg_onnx.normalization import normalize
from hrmedseg_onnx.providers import open_session
from hrmedseg_onnx.resizing import resize_to_canvas, resized_strips
from hrmedseg_onnx.sidecar import Sidecar

__all__ = ["INPUT", "OUTPUT", "OnnxModel", "Prediction"]

INPUT, OUTPUT = "image", "logits"  # names in the ONNX files


class Prediction(NamedTuple):
    """Result of a prediction, in the size of the image.

    Attributes:
        labels: (Z, Y, X), or (Y, X) for a picture; uint8 or uint16.
        probabilities: (K, Z, Y, X), or (K, Y, X) for a picture; float32. None unless requested.
    """

    labels: np.ndarray
    probabilities: np.ndarray | None


class OnnxModel:
    """An exported model: its networks, and the preprocessing and postprocessing around them.

    Args:
        folder: the folder that `hrmedseg export --onnx` wrote.
        folds: folds to average over; None: every fold in the folder.
        mirror: average over mirrored images, as nnU-Net does.
        threads: number of CPU threads of onnxruntime; None: one for each core.
        provider: execution provider of onnxruntime: "cpu", "cuda", "openvino", "coreml" or "directml".

    Attributes:
        sidecar: content of `model.json`: labels, channels, canvas and more.

    Raises:
        CheckpointError: the folder is incomplete, or its files do not belong together.
        SetupError: onnxruntime is missing, or lacks the provider, or the provider does not start.

    Examples:
        >>> import numpy as np
        >>> from hrmedseg_onnx import OnnxModel
        >>> model = OnnxModel("mine_onnx", threads=1)  # doctest: +SKIP
        >>> labels, _ = model.predict(np.zeros((768, 1024, 3), np.uint8))  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: str | PathLike,
        *,
        folds: Sequence[str | int] | None = None,
        mirror: bool = True,
        threads: int | None = None,
        provider: str = "cpu",
    ) -> None:
        folder = Path(folder)
        self.sidecar = Sidecar.read(folder)
        files = self.sidecar.folds
        chosen = [*dict.fromkeys(map(str, folds or files))]
        unknown = [fold for fold in chosen if fold not in files]
        if unknown:
            raise CheckpointError(f"{folder} has no fold {', '.join(unknown)}; it has {', '.join(files)}.")
        axes = [axis + 1 for axis in sorted(self.sidecar.mirror_axes)] if mirror else []
        self.mirrored = [c for count in range(len(axes) + 1) for c in itertools.combinations(axes, count)]
        self.sessions = [self._session(folder / files[fold], threads, provider) for fold in chosen]

    def _session(self, file: Path, threads: int | None, provider: str) -> Any:
        session = open_session(file, threads, provider)
        (taken,), (given,) = session.get_inputs(), session.get_outputs()
        height, width = self.sidecar.canvas
        expected = [len(self.sidecar.channels), height, width], [self.sidecar.num_outputs, height, width]
        if (taken.shape[1:], given.shape[1:]) != expected:
            raise CheckpointError(
                f"{file} and model.json do not belong together: the input of the file is "
                f"{format_shape(taken.shape[1:])} and its output {format_shape(given.shape[1:])}; model.json has "
                f"{format_shape(expected[0])} and {format_shape(expected[1])}. Export the model again."
            )
        return session

    def predict(
        self, image: np.ndarray | str | PathLike | Sequence[str | PathLike], *, with_probabilities: bool = False
    ) -> Prediction:
        """Predict the label map of one image.

        Args:
            image: one of

                - (Y, X) or (Y, X, C): a picture, for a model trained with pictures (PNG, TIFF, BMP, DICOM);
                - (Z, Y, X): a volume of one channel, for any other model;
                - (C, Z, Y, X): nnU-Net's layout, for all models;
                - an image file, or the files of all channels in order.
            with_probabilities: also return the probabilities.

        Returns:
            The prediction, without the axis Z for pictures given as arrays of two or three axes.

        Raises:
            DataError: the image has another number of axes or channels than the model, has NaN or infinite values or
                values outside of the range of its normalization, or a file cannot be read.
        """
        if not isinstance(image, np.ndarray):
            files = [image] if isinstance(image, str | PathLike) else image
            image = read_image([Path(file) for file in files], self.sidecar.image_reader, self.sidecar.channels).data
        picture = self.takes_pictures and image.ndim in (2, 3)
        data = self._as_channels_first(image)
        labels, probability = self._predict(data, with_probabilities)
        if picture:
            return Prediction(labels[0], None if probability is None else probability[:, 0])
        return Prediction(labels, probability)

    @property
    def takes_pictures(self) -> bool:
        return self.sidecar.image_reader in (PICTURE_READER, DICOM_READER)

    def _as_channels_first(self, image: np.ndarray) -> np.ndarray:
        """Return (C, Z, Y, X)."""
        if image.ndim == 4:
            return image
        if self.takes_pictures and image.ndim == 2:
            return image[None, None]
        if self.takes_pictures and image.ndim == 3:
            return np.moveaxis(image, -1, 0)[:, None]
        if image.ndim == 3:
            return image[None]
        expected = "(Y, X), (Y, X, C)" if self.takes_pictures else "(Z, Y, X)"
        raise DataError(f"The image has the shape {image.shape}; this model takes {expected} or (C, Z, Y, X).")

    def _predict(self, data: np.ndarray, with_probabilities: bool) -> tuple[np.ndarray, np.ndarray | None]:
        sidecar = self.sidecar
        check_image(data, sidecar.channels, "the model was trained with")
        forward = sidecar.transpose_forward
        # copied before transposing and cropping, as nnU-Net does: sums over the same memory layout are bitwise equal
        data = np.array(data, dtype=np.float32).transpose(0, *(axis + 1 for axis in forward))
        labels = np.zeros(data.shape[1:], dtype=np.uint8 if sidecar.num_labels <= 255 else np.uint16)
        probability = initial_probabilities(data.shape[1:], sidecar) if with_probabilities else None
        box = bounding_box(data)
        # views: writing to them fills the whole arrays
        labels_in_box = labels[box]
        probability_in_box = None if probability is None else probability[(slice(None), *box)]
        cropped = data[(slice(None), *box)]
        normalize(cropped, sidecar.normalization)

        for z in range(cropped.shape[1]):
            logits = self.logits(resize_to_canvas(cropped[:, z], sidecar.canvas))
            for rows, resized in resized_strips(logits, labels_in_box.shape[1:]):
                labels_in_box[z, rows] = label_values(resized, sidecar)
                if probability_in_box is not None:
                    probability_in_box[:, z, rows] = probabilities(resized, sidecar)

        backward = np.argsort(forward)
        if probability is not None:
            probability = probability.transpose(0, *(axis + 1 for axis in backward))
        return labels.transpose(backward), probability

    def logits(self, image: np.ndarray) -> np.ndarray:
        """Return the logits (K, H, W) of a normalized image (C, H, W) on the canvas: mean over mirrors and folds."""
        total: np.ndarray | None = None
        for session in self.sessions:
            for axes in self.mirrored:
                flipped = np.ascontiguousarray(np.flip(image, axes), dtype=np.float32)
                (logits,) = session.run([OUTPUT], {INPUT: flipped[None]})
                restored = np.flip(logits[0], axes)
                total = restored.copy() if total is None else np.add(total, restored, out=total)
        assert total is not None
        total /= len(self.sessions) * len(self.mirrored)
        return total
