"""Pixels of image and mask files as they are stored and shown."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from nnunet_hrmedseg.datasets.mask_pixels import read_mask
from nnunet_hrmedseg.datasets.pixels import read_image

MASK = np.array([[0, 0, 255], [0, 255, 255]], np.uint8)


@pytest.mark.parametrize("photometric", ["miniswhite", "palette"])
def test_objects_of_an_inverted_imagej_mask_are_255(tmp_path, photometric):
    file = tmp_path / "a.tif"
    inverted = np.repeat(np.arange(255, -1, -1, np.uint16)[None] * 257, 3, axis=0) if photometric == "palette" else None
    tifffile.imwrite(file, MASK, photometric=photometric, colormap=inverted, description="ImageJ=1.54f\n")
    assert read_mask(file).tolist() == MASK.tolist()
    shown = read_image(file)
    assert (shown[..., 0] if shown.ndim == 3 else shown).tolist() == (255 - MASK).tolist()


def test_inverted_mask_of_1_bit_is_read_as_shown(tmp_path):
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, MASK == 0, photometric="miniswhite")
    assert read_mask(file).tolist() == MASK.tolist()


def test_cmyk_tiff_has_the_colors_of_all_inks(tmp_path):
    inks = np.random.default_rng(0).integers(0, 256, (4, 6, 4), np.uint8)
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, inks, photometric="separated")
    shown = np.asarray(Image.fromarray(inks, "CMYK").convert("RGB"))
    np.testing.assert_allclose(read_image(file).astype(int), shown, atol=1)
    tifffile.imwrite(file, inks.astype(np.uint16) * 257, photometric="separated")
    np.testing.assert_allclose(read_image(file) / 257, shown, atol=1)


@pytest.mark.parametrize("color", [0, 7, 255])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_transparent_pixels_of_a_mask_are_background(tmp_path, color, mode, suffix):
    pixels = np.full((*MASK.shape, len(mode)), color, np.uint8)
    pixels[..., -1] = np.where(MASK, 128, 0)  # half transparent, as an overlay
    Image.fromarray(pixels, mode).save(tmp_path / f"a{suffix}")
    assert read_mask(tmp_path / f"a{suffix}").tolist() == np.where(MASK, color or 255, 0).tolist()
    pixels[..., -1] = 0  # an alpha channel that means nothing
    Image.fromarray(pixels, mode).save(tmp_path / f"a{suffix}")
    assert read_mask(tmp_path / f"a{suffix}").tolist() == np.full(MASK.shape, color).tolist()
