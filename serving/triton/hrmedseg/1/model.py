"""Python backend of the Triton Inference Server for an exported model, which lies in the folder `onnx` beside it."""

from __future__ import annotations

import json
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from hrmedseg_onnx import HRMedSegError, OnnxModel
from hrmedseg_onnx.errors import DataError

IMAGE, IMAGE_FILES, LABELS, PROBABILITIES = "image", "image_files", "labels", "probabilities"
"""Names of inputs and outputs in config.pbtxt."""
FOLDER = "onnx"


class TritonPythonModel:
    """One instance of the model. Triton calls its methods."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model.

        Args:
            args: `model_config`, config.pbtxt as JSON; `model_repository`, the model's folder; `model_version`.

        Raises:
            pb_utils.TritonModelException: the model cannot be loaded, or config.pbtxt does not fit it.
        """
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"] / FOLDER
        mirror, threads = (config["parameters"][name]["string_value"] for name in ("mirror", "threads"))
        if mirror not in ("true", "false") or not threads.isdecimal():
            raise pb_utils.TritonModelException(
                f"config.pbtxt: mirror is {mirror!r} and threads is {threads!r}. Set true or false, and a number."
            )
        try:
            self.model = OnnxModel(folder, mirror=mirror == "true", threads=int(threads) or None)
        except HRMedSegError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        self._check_outputs(config)

    def _check_outputs(self, config: dict[str, Any]) -> None:
        axes = 2 if self.model.takes_pictures else 3
        labels = pb_utils.get_output_config_by_name(config, LABELS)
        probabilities = pb_utils.get_output_config_by_name(config, PROBABILITIES)
        label_type = "TYPE_UINT8" if self.model.sidecar.num_labels <= 255 else "TYPE_UINT16"
        for name, output, number, data_type in (
            (LABELS, labels, axes, label_type),
            (PROBABILITIES, probabilities, axes + 1, "TYPE_FP32"),
        ):
            if len(output["dims"]) != number or output["data_type"] != data_type:
                raise pb_utils.TritonModelException(
                    f"config.pbtxt: the output {name} has the dims {output['dims']} and {output['data_type']}, and the "
                    f"model writes {number} axes of {data_type}. Set dims: {[-1] * number} and data_type: {data_type}."
                )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Predict the image of each request. A request that fails has an error as its response."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            return pb_utils.InferenceResponse(output_tensors=self._predict(request))
        except HRMedSegError as error:
            return _error(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:  # the other requests of this call can be answered
            pb_utils.Logger.log_error(traceback.format_exc())
            return _error(f"{type(error).__name__}: see the log of the server.", pb_utils.TritonError.INTERNAL)

    def _predict(self, request: Any) -> list[Any]:
        pixels = pb_utils.get_input_tensor_by_name(request, IMAGE)
        contents = pb_utils.get_input_tensor_by_name(request, IMAGE_FILES)
        requested = request.requested_output_names()
        with_probabilities = PROBABILITIES in requested
        if (pixels is None) == (contents is None):
            raise DataError(f"The request has both inputs or none. Give either {IMAGE} or {IMAGE_FILES}.")
        if pixels is not None:
            prediction = self.model.predict(pixels.as_numpy(), with_probabilities=with_probabilities)
        else:
            prediction = self._predict_files(contents.as_numpy(), with_probabilities)
        outputs = {LABELS: prediction.labels, PROBABILITIES: prediction.probabilities}
        return [pb_utils.Tensor(name, np.ascontiguousarray(outputs[name])) for name in requested]

    def _predict_files(self, contents: np.ndarray, with_probabilities: bool) -> Any:
        if len(contents) == 0:
            raise DataError(
                f"{IMAGE_FILES} is empty. Give the content of one file for each channel, or of one for all."
            )
        with tempfile.TemporaryDirectory() as folder:
            files = []
            for channel, content in enumerate(contents):
                files.append(Path(folder) / f"image_{channel:04d}{self.model.sidecar.file_ending}")
                files[-1].write_bytes(content)
            prediction = self.model.predict(files, with_probabilities=with_probabilities)
        if not self.model.takes_pictures:
            return prediction
        labels, probabilities = prediction
        if len(labels) != 1:
            raise DataError(
                f"The file has {len(labels)} frames, and this service takes pictures. Send each frame alone."
            )
        return type(prediction)(labels[0], None if probabilities is None else probabilities[:, 0])

    def finalize(self) -> None:
        """Free the model's memory."""
        del self.model


def _error(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message, code))
