"""Widget for napari: segment an image layer with an exported model. The manifest napari.yaml names it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hrmedseg_onnx.errors import DataError
from hrmedseg_onnx.model import OnnxModel
from hrmedseg_onnx.sidecar import SIDECAR

if TYPE_CHECKING:
    from magicgui.widgets import FunctionGui
    from napari.layers import Image

__all__ = ["segment_layer", "segment_widget"]


def segment_widget() -> FunctionGui:
    """Return the widget: choose an image layer and the folder of a model, and press Segment."""
    import magicgui
    from napari.layers import Image
    from napari.qt.threading import FunctionWorker, create_worker
    from napari.types import LayerDataTuple

    def segment(image, model, mirror=True):
        if image is None or not (Path(model) / SIDECAR).is_file():
            raise DataError(
                f"Choose an image layer, and the folder that hrmedseg export --onnx wrote, with {SIDECAR} in it. This "
                f"folder is {model}."
            )
        return create_worker(segment_layer, image, Path(model), mirror=mirror, _progress=True)

    segment.__annotations__ = {
        "image": Image,
        "model": Path,
        "mirror": bool,
        "return": FunctionWorker[LayerDataTuple],
    }
    widget = magicgui.magicgui(
        segment,
        call_button="Segment",
        image={"label": "Image"},
        model={"label": "Model", "mode": "d", "tooltip": "folder that hrmedseg export --onnx wrote"},
        mirror={"label": "Mirror", "tooltip": "slightly more accurate, up to four times slower"},
    )
    widget.called.connect(lambda worker: worker.start())  # after napari has connected the result to the viewer
    return widget


def segment_layer(image: Image, folder: Path, *, mirror: bool = True) -> tuple[np.ndarray, dict[str, Any], str]:
    """Segment an image layer.

    Args:
        image: a picture, gray or RGB; a stack of them, which are segmented one by one; or a volume, for a model that
            was trained with volumes. Of a multiscale layer, the finest level.
        folder: folder of the exported model.
        mirror: average over mirrored images, as nnU-Net does.

    Returns:
        Data, attributes and kind of a labels layer, whose status shows the names of the classes.

    Raises:
        CheckpointError: the folder has no model.
        DataError: the image has another number of channels than the model.
    """
    model = _model(folder, (folder / SIDECAR).stat().st_mtime_ns, mirror)
    pixels = np.asarray(image.data[0] if image.multiscale else image.data)
    if image.rgb:
        pixels = pixels[..., :3]  # without transparency
    classes = {value: name for name, value in model.sidecar.labels.items() if isinstance(value, int)}
    spatial = pixels.ndim - 1 if image.rgb else pixels.ndim
    attributes = {
        "name": f"{image.name} {model.sidecar.dataset}",
        "features": {"index": list(classes), "class": list(classes.values())},
        "scale": image.scale[-spatial:],
        "translate": image.translate[-spatial:],
    }
    return _labels(model, pixels, spatial), attributes, "labels"


def _labels(model: OnnxModel, pixels: np.ndarray, spatial: int) -> np.ndarray:
    """Return the labels of the last two axes for each position on the others, or of a volume as a whole."""
    if spatial == 2 or (spatial == 3 and not model.takes_pictures):
        labels = model.predict(pixels).labels
        return labels.reshape(pixels.shape[:spatial])
    return np.stack([_labels(model, part, spatial - 1) for part in pixels])


@lru_cache(maxsize=1)
def _model(folder: Path, _changed: int, mirror: bool) -> OnnxModel:
    return OnnxModel(folder, mirror=mirror)
