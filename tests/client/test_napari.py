"""The widget for napari segments layers of an offscreen viewer, and the manifests refer to it."""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

DISPLAY = sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
if not DISPLAY:
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
napari = pytest.importorskip("napari")
npe2 = pytest.importorskip("npe2")

from napari.qt import get_qapp  # noqa: E402

import hrmedseg_onnx  # noqa: E402
import nnunet_hrmedseg  # noqa: E402
from hrmedseg_onnx.errors import DataError  # noqa: E402
from hrmedseg_onnx.model import OnnxModel  # noqa: E402
from hrmedseg_onnx.napari_widget import segment_layer, segment_widget  # noqa: E402
from tests.deployment.tiny_models import blobs  # noqa: E402

pytestmark = pytest.mark.slow

SIZE = (50, 70)
TIMEOUT = 120  # seconds


def photo(seed: int = 0) -> np.ndarray:
    return np.moveaxis(blobs(np.random.default_rng(seed), SIZE, 3), 0, -1)


@pytest.fixture
def viewer():
    if not DISPLAY:
        pytest.skip("the canvas of napari needs a display, such as that of xvfb-run")
    opened = napari.Viewer(show=False)
    yield opened
    opened.close()


def test_widget_adds_labels(pictures, viewer):
    widget = segment_widget()
    viewer.window.add_dock_widget(widget)
    viewer.add_image(photo(), name="photo", rgb=True, scale=(0.5, 0.25), translate=(3, 4))
    widget.model.value = pictures.folder
    assert widget.image.choices == (viewer.layers["photo"],)
    widget.call_button.changed.emit(True)
    end = time.monotonic() + TIMEOUT
    while len(viewer.layers) < 2 and time.monotonic() < end:  # it works in a thread
        get_qapp().processEvents()
        time.sleep(0.01)
    made = viewer.layers[1]
    assert isinstance(made, napari.layers.Labels) and made.name == "photo Dataset001_Test"
    assert np.array_equal(made.data, OnnxModel(pictures.folder, threads=1).predict(photo()).labels)
    assert np.array_equal(made.scale, (0.5, 0.25)) and np.array_equal(made.translate, (3, 4))
    assert list(made.features["class"]) == ["background", "gray", "bright", "ignore"]


def test_stack_is_segmented_picture_by_picture(pictures):
    stack = np.stack([photo(0), photo(1)])
    layer = napari.layers.Image(np.concatenate([stack, stack[..., :1]], axis=-1), rgb=True)  # with transparency
    labels, attributes, kind = segment_layer(layer, pictures.folder, mirror=False)
    assert kind == "labels" and len(attributes["scale"]) == 3
    model = OnnxModel(pictures.folder, mirror=False, threads=1)
    assert np.array_equal(labels, [model.predict(picture).labels for picture in stack])


def test_unsuitable_images_and_folders_are_reported(pictures, tmp_path):
    with pytest.raises(DataError, match="trained with 3 channels"):
        segment_layer(napari.layers.Image(photo()[..., 0]), pictures.folder)
    get_qapp()
    widget = segment_widget()  # without a viewer, it offers no layer
    with pytest.raises(DataError, match=f"with model.json in it. This folder is {tmp_path}"):
        widget(model=tmp_path)
    with pytest.raises(DataError, match="Choose an image layer"):
        widget(model=pictures.folder)


@pytest.mark.parametrize("package", [hrmedseg_onnx, nnunet_hrmedseg], ids=lambda package: package.__name__)
def test_manifests_refer_to_the_widget(package):
    """Both wheels have a manifest with the name of the wheel."""
    manifest = npe2.PluginManifest.from_file(Path(package.__file__).with_name("napari.yaml"))
    assert manifest.name.replace("-", "_") == package.__name__
    (command,) = manifest.contributions.commands
    module, _, name = command.python_name.partition(":")
    assert getattr(importlib.import_module(module), name) is segment_widget
    (widget,) = manifest.contributions.widgets
    assert widget.command == command.id
