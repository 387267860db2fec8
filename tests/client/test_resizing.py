"""Resizing in numpy compared with torch and with the package's canvas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hrmedseg_onnx.resizing import linear_taps, resize_to_canvas, resized_strips
from nnunet_hrmedseg.preprocessing.canvas import resize_images_to_canvas

SIZES = [((40, 37), (64, 48)), ((200, 333), (64, 48)), ((64, 100), (64, 48)), ((1, 7), (32, 16)), ((64, 48), (64, 48))]


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 10, shape).astype(np.float32)


def _interpolated(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (K, H, W) to (K, Y, X) by torch, with the slice axis of nnU-Net's resampling."""
    return F.interpolate(torch.from_numpy(logits)[None, :, None], (1, *size), mode="trilinear")[0, :, 0].numpy()


@pytest.mark.parametrize("size, canvas", SIZES)
def test_images_are_resized_to_the_canvas_as_in_training(size, canvas):
    image = _random(2, *size)
    wanted = resize_images_to_canvas(image[:, None], canvas)[:, 0]
    np.testing.assert_allclose(resize_to_canvas(image, canvas), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "canvas, size", [(new, old) for old, new in SIZES] + [((64, 48), (3000, 5)), ((64, 48), (9, 7))]
)
def test_logits_are_resized_back_as_by_torch(canvas, size):
    logits = _random(3, *canvas)
    wanted = _interpolated(logits, size)
    back = np.empty_like(wanted)
    for rows, strip in resized_strips(logits, size):
        back[:, rows] = strip
    # with AVX512, torch's positions are rounded once instead of twice
    np.testing.assert_allclose(back, wanted, atol=2e-4)


@pytest.mark.parametrize("old, new", [(1024, 5000), (1024, 4999), (512, 7919), (2048, 301)])
def test_positions_on_long_axes_are_precise(old, new):
    """Positions require many digits: in a ramp, each value is a position."""
    ramp = np.arange(old, dtype=np.float32)[None, None]
    np.testing.assert_allclose(linear_taps(old, new).columns(ramp), _interpolated(ramp, (1, new)), atol=2e-4)


def test_many_classes_of_a_large_image_need_little_memory():
    strips = [part for _, part in resized_strips(_random(14, 64, 64), (400, 3000))]
    assert len(strips) > 3
    assert max(part.nbytes for part in strips) < 20e6
    assert sum(part.shape[1] for part in strips) == 400
