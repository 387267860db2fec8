"""Crop and normalization compared with nnU-Net by value."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

from hrmedseg_onnx.nonzero import bounding_box, nonzero_mask
from hrmedseg_onnx.normalization import normalize
from hrmedseg_onnx.sidecar import SCHEMES, Normalization
from nnunet_hrmedseg.errors import DataError
from nnunet_hrmedseg.preprocessing.preprocessor import HRMedSegPreprocessor
from tests.deployment.tiny_models import CT


def _hollow(channels: int = 2) -> np.ndarray:
    """Return a volume with a border of zeros, a hole enclosed on all sides, and a hole open to the front."""
    data = np.random.default_rng(0).integers(1, 255, (channels, 9, 20, 24)).astype(np.float32)
    data[:, :, :3] = 0
    data[:, -2:] = 0
    data[:, 2:5, 8:12, 8:12] = 0
    data[:, :4, 14:17, 14:20] = 0
    return data


def _maze() -> np.ndarray:
    """Return a spiral of zeros: whether a pixel is open is found only around many corners."""
    free = np.zeros((15, 15), bool)
    free[1, 1:14] = free[1:14, 13] = free[13, 1:14] = free[3:14, 1] = True
    free[3, 1:12] = free[3:12, 11] = free[11, 3:12] = free[5:12, 3] = True
    free[1, 0] = True
    free[7, 7] = True  # the only enclosed pixel
    data = np.ones((1, 3, 15, 15), np.float32)
    data[0, 1][free] = 0
    return data


IMAGES = {
    "hollow": _hollow(),
    "maze": _maze(),
    "one slice": _hollow()[:, 3:4],
    "black": np.zeros((2, 1, 5, 6), np.float32),
    "one pixel": np.pad(np.ones((1, 1, 1, 1), np.float32), ((0, 0), (2, 1), (3, 0), (0, 4))),
    "channels that are zero in different places": np.stack([_hollow(1)[0], np.roll(_hollow(1)[0], 4, axis=-1)]),
}


@pytest.mark.parametrize("name", IMAGES)
def test_crop_and_mask_equal_those_of_nnunet(name):
    data = IMAGES[name]
    cropped, outside, box = crop_to_nonzero(data)
    assert [[part.start, part.stop] for part in bounding_box(data)] == box
    np.testing.assert_array_equal(nonzero_mask(cropped), outside[0] >= 0)


def test_images_have_holes():
    """Otherwise test_crop_and_mask_equal_those_of_nnunet would not detect anything."""
    for name in ("hollow", "maze"):
        data = IMAGES[name]
        assert (nonzero_mask(data) & (data == 0).all(0)).any(), name
        assert (~nonzero_mask(data)).any(), name


@pytest.mark.parametrize("use_mask", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_values_equal_those_of_nnunet(scheme, use_mask):
    data, seg, _ = crop_to_nonzero(_hollow())
    data[1] = np.where(data[1] != 0, 90, 0)  # constant where it is not zero
    configuration = SimpleNamespace(normalization_schemes=[scheme] * 2, use_mask_for_norm=[use_mask] * 2)
    wanted = HRMedSegPreprocessor(verbose=False)._normalize(data.copy(), seg, configuration, {"0": CT, "1": CT})
    ours = data.copy()
    normalize(ours, [Normalization(scheme, use_mask, CT)] * 2)
    np.testing.assert_array_equal(ours, wanted)
    assert (ours == data).all() == (scheme == "NoNormalization")


def test_constant_image_becomes_zero():
    data = np.full((1, 1, 1000, 1000), 0.1, np.float32)
    normalize(data, [Normalization("ZScoreNormalization", False)])
    assert not data.any()


@pytest.mark.parametrize("value", [-1, 256])
def test_rgb_normalization_rejects_values_beyond_8_bits(value):
    data = np.full((1, 1, 2, 2), 7, np.float32)
    data[0, 0, 0, 0] = value
    with pytest.raises(DataError, match=f"Channel 0 holds values from .*{value}.*8 bits"):
        normalize(data, [Normalization("RGBTo01Normalization", False)])
