"""OnnxModel as a Python class: arrays of several shapes, files, and errors."""

from __future__ import annotations

import sys

import numpy as np
import PIL.Image
import pytest

import hrmedseg_onnx
import nnunet_hrmedseg
from hrmedseg_onnx import OnnxModel, predict_files
from hrmedseg_onnx.errors import CheckpointError, DataError, SetupError
from tests.deployment.tiny_models import blobs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(pictures) -> OnnxModel:
    return OnnxModel(pictures.folder, folds=[0], mirror=False, threads=1)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Return (Y, X, 3) uint8."""
    return np.moveaxis(blobs(np.random.default_rng(0), (50, 70), 3), 0, -1)


def test_versions_are_equal():
    assert hrmedseg_onnx.__version__ == nnunet_hrmedseg.__version__


def test_errors_are_the_same_classes():
    assert issubclass(hrmedseg_onnx.HRMedSegError, nnunet_hrmedseg.HRMedSegError)
    assert nnunet_hrmedseg.OnnxModel is OnnxModel


def test_picture_as_array_in_nnunets_layout_and_as_file(model, picture, tmp_path):
    channels_first = np.moveaxis(picture, -1, 0)[:, None].astype(np.float32)
    labels, probabilities = model.predict(picture, with_probabilities=True)
    assert labels.shape == (50, 70) and labels.dtype == np.uint8 and len(np.unique(labels)) > 1
    assert probabilities is not None and probabilities.shape == (3, 50, 70)
    np.testing.assert_array_equal(model.predict(channels_first).labels[0], labels)
    PIL.Image.fromarray(picture).save(tmp_path / "photo.png")
    for files in (tmp_path / "photo.png", str(tmp_path / "photo.png"), [tmp_path / "photo.png"]):
        np.testing.assert_array_equal(model.predict(files).labels[0], labels)


def test_volume_as_array(volumes):
    model = OnnxModel(volumes.folder, mirror=False, threads=1)
    volume = np.stack([blobs(np.random.default_rng(z), (30, 40), 1)[0] for z in range(3)], axis=-1)
    labels = model.predict(volume).labels
    assert labels.shape == (30, 40, 3)
    np.testing.assert_array_equal(model.predict(volume[None]).labels, labels)


def test_arrays_with_other_axes_or_channels_are_rejected(model, volumes):
    with pytest.raises(DataError, match=r"\(7,\).*\(Y, X, C\)"):
        model.predict(np.zeros(7))
    with pytest.raises(DataError, match="Wrong number of channels"):
        model.predict(np.zeros((20, 30)))
    with pytest.raises(DataError, match=r"\(20, 30\).*\(Z, Y, X\)"):
        OnnxModel(volumes.folder, threads=1).predict(np.zeros((20, 30)))


def test_kinds_of_errors(pictures, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError):
        OnnxModel(tmp_path)
    with pytest.raises(DataError):
        OnnxModel(pictures.folder, threads=1).predict(tmp_path / "nothing.png")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SetupError):
        OnnxModel(pictures.folder)


def test_predict_files_returns_label_maps_and_failures(model, picture, tmp_path):
    PIL.Image.fromarray(picture).save(tmp_path / "good.png")
    PIL.Image.fromarray(picture[..., 0]).save(tmp_path / "gray.png")
    inputs = [tmp_path / "good.png", tmp_path / "gray.png"]
    summary = predict_files(model=model, inputs=inputs, output=tmp_path / "masks")
    assert summary.label_maps == {"good": tmp_path / "masks" / "good.png"} and summary.count == 2
    assert list(summary.failures) == ["gray"] and "Wrong number of channels" in summary.failures["gray"]
    written = np.asarray(PIL.Image.open(summary.label_maps["good"]))
    np.testing.assert_array_equal(written, model.predict(picture).labels)
