"""`hrmedseg predict-onnx`: nnU-Net's prediction with numpy and onnxruntime, without torch and nnU-Net."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_hrmedseg.deployment.cases import Case, find_cases, skipped_inputs
from nnunet_hrmedseg.deployment.image_files import (
    files_read,
    files_written,
    read_image,
    readable_endings,
    write_label_map,
    written_whole,
)
from nnunet_hrmedseg.deployment.labels import label_values, no_probabilities, probabilities
from nnunet_hrmedseg.deployment.nonzero import bounding_box
from nnunet_hrmedseg.deployment.normalization import normalize
from nnunet_hrmedseg.deployment.resizing import resize_to_canvas, resized_strips
from nnunet_hrmedseg.deployment.sidecar import Sidecar
from nnunet_hrmedseg.errors import HRMedSegError, format_names, format_shape
from nnunet_hrmedseg.io.files import check_output_dir, is_disk_error, make_output_dir, reporting_write_errors
from nnunet_hrmedseg.io.hub import local_path
from nnunet_hrmedseg.io.image_check import check_image

__all__ = ["OnnxModel", "open_session", "predict_onnx"]

INPUT, OUTPUT = "image", "logits"  # names in the ONNX files


def predict_onnx(args: argparse.Namespace) -> int:
    """Predict the cases one after the other. Returns 0, or 1 if any could not be predicted; the others are.

    Raises:
        HRMedSegError: no model, no images, onnxruntime is missing, or an image would be overwritten.
    """
    folder, inputs, output = local_path(args.model), [Path(path) for path in args.input], Path(args.output)
    check_output_dir(output)
    model = OnnxModel(folder, folds=args.folds, mirror=not args.disable_tta, threads=args.threads)
    sidecar = model.sidecar
    cases = find_cases(
        inputs,
        sidecar.file_ending,
        channels=len(sidecar.channels),
        readable=readable_endings(sidecar.image_reader),
    )
    _refuse_to_replace_images(cases, output, sidecar)
    used = {place for case in cases for file in case.files for place in files_read(file, sidecar.image_reader)}
    for sentence in skipped_inputs(inputs, used):
        print(sentence)
    make_output_dir(output)
    failed = []
    for number, case in enumerate(cases, start=1):
        try:
            done = str(predict_case(model, case, output, save_probabilities=args.save_probabilities))
        except Exception as error:  # one case must not cost all others
            if isinstance(error, OSError) and is_disk_error(error):  # all others would fail as this one
                with reporting_write_errors(_label_map(case, output, sidecar)):
                    raise
            kind = "" if isinstance(error, HRMedSegError) else f" ({type(error).__name__})"
            print(f"{number}/{len(cases)} {case.name} FAILED: {error}{kind}", file=sys.stderr)
            failed.append(case.name)
        else:
            print(f"{number}/{len(cases)} {done}")
    print(f"{len(cases) - len(failed)} of {len(cases)} predicted, in {output}")
    if failed:
        print(f"hrmedseg predict-onnx: {len(failed)} failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _refuse_to_replace_images(cases: Sequence[Case], output: Path, sidecar: Sidecar) -> None:
    """An image without a channel number has the name that its label map will have."""
    reader = sidecar.image_reader
    inputs = {place.resolve() for case in cases for file in case.files for place in files_read(file, reader)}
    written = [place for case in cases for place in files_written(_label_map(case, output, sidecar), reader)]
    hit = [str(file) for file in written if file.resolve() in inputs]
    if hit:
        raise HRMedSegError(
            f"{format_names(hit)} would be overwritten, which are images to predict. Give -o another folder."
        )


def _label_map(case: Case, output: Path, sidecar: Sidecar) -> Path:
    return output / f"{case.name}{sidecar.file_ending}"


def predict_case(model: OnnxModel, case: Case, output: Path, *, save_probabilities: bool = False) -> Path:
    """Predict one case into the folder `output`. Returns the file of its label map.

    Raises:
        HRMedSegError: its files cannot be read, or are not what the model was trained with.
    """
    if case.fault:
        raise HRMedSegError(case.fault)
    sidecar = model.sidecar
    image = read_image(case.files, sidecar.image_reader)
    labels, probability = model.predict(image.data, with_probabilities=save_probabilities)
    file = _label_map(case, output, sidecar)
    write_label_map(labels, file, sidecar.image_reader, image.geometry)
    if probability is not None:
        with written_whole(output / f"{case.name}.npz") as temporary:
            np.savez_compressed(temporary, probabilities=probability)
    return file


class OnnxModel:
    """The networks of an exported model, and what is done around them.

    Args:
        folder: what `hrmedseg export --onnx` wrote.
        folds: those to average over; None: all that are there.
        mirror: average over the mirrored images as well, as nnU-Net does.
        threads: of onnxruntime; None: all cores.

    Raises:
        HRMedSegError: the folder is incomplete or its files do not belong together, or onnxruntime is missing.
    """

    def __init__(
        self, folder: Path, *, folds: Sequence[str] | None = None, mirror: bool = True, threads: int | None = None
    ) -> None:
        self.sidecar = Sidecar.read(folder)
        there = self.sidecar.folds
        unknown = [fold for fold in folds or () if fold not in there]
        if unknown:
            raise HRMedSegError(f"{folder} has no fold {', '.join(unknown)}; it has {', '.join(there)}.")
        axes = [axis + 1 for axis in sorted(self.sidecar.mirror_axes)] if mirror else []
        self.mirrored = [c for count in range(len(axes) + 1) for c in itertools.combinations(axes, count)]
        self.sessions = [self._session(folder / there[fold], threads) for fold in dict.fromkeys(folds or there)]

    def _session(self, file: Path, threads: int | None) -> Any:
        session = open_session(file, threads)
        (taken,), (given,) = session.get_inputs(), session.get_outputs()
        height, width = self.sidecar.canvas
        wanted = [len(self.sidecar.channels), height, width], [self.sidecar.num_outputs, height, width]
        if (taken.shape[1:], given.shape[1:]) != wanted:
            raise HRMedSegError(
                f"{file} and model.json do not belong together: the file takes images of {format_shape(taken.shape[1:])} and "
                f"gives logits of {format_shape(given.shape[1:])}, model.json says {format_shape(wanted[0])} and {format_shape(wanted[1])}. "
                f"Export the model again."
            )
        return session

    def predict(self, data: np.ndarray, *, with_probabilities: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
        """From an image as it was read to the label map of its size.

        Args:
            data: (C, Z, Y, X) float32; left as it is.

        Returns:
            Labels (Z, Y, X), uint8 or uint16, and probabilities (K, Z, Y, X) float32 or None.

        Raises:
            HRMedSegError: the image has other channels than the model, or NaN, or values the normalisation refuses.
        """
        sidecar = self.sidecar
        check_image(data, sidecar.channels, "the model was trained with")
        forward = sidecar.transpose_forward
        # a copy in front of transpose and crop, as nnU-Net's: means over the same layout are the same to the last digit
        data = np.array(data, dtype=np.float32).transpose(0, *(axis + 1 for axis in forward))
        labels = np.zeros(data.shape[1:], dtype=np.uint8 if sidecar.num_labels <= 255 else np.uint16)
        probability = no_probabilities(data.shape[1:], sidecar) if with_probabilities else None
        box = bounding_box(data)
        # views: what is written into them is in the whole arrays
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
        """A normalised image on the canvas, (C, H, W) -> (K, H, W) float32: the mean over mirrorings and folds."""
        total: np.ndarray | None = None
        for session in self.sessions:
            for axes in self.mirrored:
                flipped = np.ascontiguousarray(np.flip(image, axes), dtype=np.float32)
                (logits,) = session.run([OUTPUT], {INPUT: flipped[None]})
                turned_back = np.flip(logits[0], axes)
                total = turned_back.copy() if total is None else np.add(total, turned_back, out=total)
        assert total is not None
        total /= len(self.sessions) * len(self.mirrored)
        return total


def open_session(file: Path, threads: int | None = None) -> Any:
    """An onnxruntime session on the CPU.

    Raises:
        HRMedSegError: onnxruntime is missing, or the file is no ONNX file that it can run.
    """
    try:
        import onnxruntime
    except ImportError:
        raise HRMedSegError("onnxruntime is not installed: pip install onnxruntime") from None
    if not file.is_file():
        raise HRMedSegError(f"{file} does not exist. Give the whole folder that hrmedseg export --onnx wrote.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # what is only a warning helps no user
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each, and promises none
        raise HRMedSegError(
            f"{file} cannot be loaded by onnxruntime {onnxruntime.__version__}: {error} Copy or export it again, or "
            f"update onnxruntime."
        ) from error
