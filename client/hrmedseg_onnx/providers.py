"""Execution providers of onnxruntime by short names: the device and library that compute the network."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from hrmedseg_onnx.errors import CheckpointError, SetupError, summarize_error
from hrmedseg_onnx.file_kinds import recognize_file

__all__ = ["PROVIDERS", "open_session"]


@dataclass(frozen=True)
class _Provider:
    """A provider: its name in onnxruntime, what to install, and options that keep float32."""

    name: str
    install: str
    needs: str = ""  # beside the package
    options: dict[str, str] = field(default_factory=dict)


_INSTEAD = "pip uninstall onnxruntime, then pip install {}"  # all packages install the same module
PROVIDERS = {
    "cpu": _Provider("CPUExecutionProvider", "pip install onnxruntime"),
    "cuda": _Provider(
        "CUDAExecutionProvider",
        _INSTEAD.format("'onnxruntime-gpu[cuda,cudnn]'"),
        "an NVIDIA GPU with its driver, and CUDA and cuDNN in the versions of onnxruntime-gpu",
        {"use_tf32": "0"},
    ),
    "openvino": _Provider(
        "OpenVINOExecutionProvider", _INSTEAD.format("onnxruntime-openvino"), "a device that OpenVINO supports"
    ),
    "coreml": _Provider("CoreMLExecutionProvider", "pip install onnxruntime, on macOS", "macOS"),
    "directml": _Provider(
        "DmlExecutionProvider", _INSTEAD.format("onnxruntime-directml, on Windows"), "a GPU with DirectX 12"
    ),
}
"""Short name -> provider."""


def open_session(file: Path, threads: int | None = None, provider: str = "cpu") -> Any:
    """Return an onnxruntime session that computes with a provider. Only parts that it does not support use the CPU.

    Args:
        file: an ONNX file.
        threads: number of CPU threads; None: one for each core.
        provider: a key of `PROVIDERS`.

    Raises:
        CheckpointError: the file does not exist, or onnxruntime cannot load it.
        SetupError: onnxruntime is missing, or lacks the provider, or the provider does not start.
    """
    try:
        import onnxruntime
    except ImportError:
        raise SetupError("onnxruntime is not installed: pip install onnxruntime") from None
    chosen = _installed(provider, onnxruntime)
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist. Give the whole folder that hrmedseg export --onnx wrote.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # errors only
    if provider == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(sys.stderr):  # it prints what is missing
            onnxruntime.preload_dlls()  # CUDA and cuDNN of pip packages
    elif provider == "directml":
        options.enable_mem_pattern = False  # which DirectML does not support
    try:
        # without enable_fallback=0, a provider that fails is silently replaced by the CPU
        session = onnxruntime.InferenceSession(
            str(file), options, providers=[(chosen.name, chosen.options)], enable_fallback=0
        )
    except Exception as error:  # onnxruntime raises many undocumented classes
        kind = recognize_file(file)
        if kind and ":" in kind:
            raise CheckpointError(f"{file} is not an ONNX model, but {kind}.") from error
        reason = f"{file} cannot be loaded by onnxruntime {onnxruntime.__version__}"
        if provider != "cpu":
            raise SetupError(
                f"{reason} with the provider {provider}, which needs {chosen.needs}: {summarize_error(error)} Use "
                f"--provider cpu if that is missing."
            ) from error
        raise CheckpointError(
            f"{reason}: {summarize_error(error)} Copy or export it again, or update onnxruntime."
        ) from error
    if chosen.name not in session.get_providers():
        raise SetupError(
            f"The provider {provider} of onnxruntime {onnxruntime.__version__} does not start; it needs "
            f"{chosen.needs}. Messages of onnxruntime above may name what is missing. Use --provider cpu without it."
        )
    return session


def _installed(provider: str, onnxruntime: ModuleType) -> _Provider:
    """Return a provider that the installed onnxruntime was built with."""
    if provider not in PROVIDERS:
        raise SetupError(f"There is no provider {provider!r}; there are {', '.join(PROVIDERS)}.")
    available = onnxruntime.get_available_providers()
    chosen = PROVIDERS[provider]
    if chosen.name not in available:
        there = ", ".join(name for name, other in PROVIDERS.items() if other.name in available)
        raise SetupError(
            f"The installed onnxruntime {onnxruntime.__version__} lacks the provider {provider}; it has {there}. "
            f"Install it: {chosen.install}."
        )
    return chosen
