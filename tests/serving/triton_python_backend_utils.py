"""A stand-in for the module of this name in the Triton Inference Server: what serving/triton uses of it.

The module of Triton exists only inside its server, so these tests cannot import it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

__all__ = [
    "InferenceRequest",
    "InferenceResponse",
    "Logger",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "get_input_tensor_by_name",
    "get_output_config_by_name",
    "triton_string_to_numpy",
]

_NUMPY = {
    "TYPE_UINT8": np.uint8,
    "TYPE_UINT16": np.uint16,
    "TYPE_FP32": np.float32,
    "TYPE_STRING": np.object_,
}


class TritonModelException(Exception):
    pass


class TritonError:
    INTERNAL, INVALID_ARG = 1, 3

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    def __init__(self, name: str, numpy_array: np.ndarray) -> None:
        assert isinstance(numpy_array, np.ndarray) and numpy_array.dtype.type in _NUMPY.values()
        self._name, self._array = name, numpy_array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


@dataclass
class InferenceRequest:
    tensors: list[Tensor]
    outputs: list[str]

    def inputs(self) -> list[Tensor]:
        return self.tensors

    def requested_output_names(self) -> list[str]:
        return self.outputs


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None) -> None:
        self.tensors, self.failure = output_tensors, error

    def output_tensors(self) -> list[Tensor]:
        return self.tensors

    def has_error(self) -> bool:
        return self.failure is not None

    def error(self) -> TritonError | None:
        return self.failure


class Logger:
    messages: ClassVar[list[str]] = []

    @classmethod
    def log_error(cls, message: str) -> None:
        cls.messages.append(message)


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def get_output_config_by_name(config: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((output for output in config["output"] if output["name"] == name), None)


def triton_string_to_numpy(name: str) -> type:
    return _NUMPY[name]
