"""Execution providers of onnxruntime: what is missing is stated, and nothing computes on the CPU unnoticed."""

from __future__ import annotations

import onnxruntime
import pytest

from hrmedseg_onnx.errors import SetupError
from hrmedseg_onnx.model import OnnxModel
from hrmedseg_onnx.providers import PROVIDERS, open_session

pytestmark = pytest.mark.slow


@pytest.fixture
def file(pictures):
    return pictures.folder / "fold_0.onnx"


def test_names_are_those_of_onnxruntime():
    assert {provider.name for provider in PROVIDERS.values()} <= set(onnxruntime.get_all_providers())


def test_the_cpu_is_the_default(pictures, file):
    assert open_session(file).get_providers() == ["CPUExecutionProvider"]
    (session,) = OnnxModel(pictures.folder, folds=[0], provider="cpu").sessions
    assert session.get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize("provider, package", [("cuda", "onnxruntime-gpu"), ("directml", "onnxruntime-directml")])
def test_missing_providers_are_reported_with_their_package(pictures, monkeypatch, provider, package):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(SetupError, match=f"lacks the provider {provider}; it has cpu. .*{package}"):
        OnnxModel(pictures.folder, provider=provider)
    with pytest.raises(SetupError, match="no provider 'gpu'; there are cpu, cuda"):
        OnnxModel(pictures.folder, provider="gpu")


def test_provider_that_does_not_start_is_not_replaced_by_the_cpu(file, monkeypatch):
    """The provider is announced, but not there, so that onnxruntime itself makes a session on the CPU."""
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    with pytest.warns(UserWarning, match="not in available provider"):
        with pytest.raises(SetupError, match="provider cuda .* does not start; it needs an NVIDIA GPU"):
            open_session(file, provider="cuda")


def test_error_of_a_provider_is_reported_as_its_own(file, monkeypatch):
    def fail(*arguments, enable_fallback, **options):
        assert enable_fallback == 0
        raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(SetupError, match="provider cuda, which needs an NVIDIA GPU.*no CUDA-capable device"):
        open_session(file, provider="cuda")
