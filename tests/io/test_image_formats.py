"""Decoding image files to 8 bits: values are right, and nothing is dropped without a message."""

import io
import json

import imagecodecs
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from nnunet_hrmedseg.encoders.canvas_images import CanvasImages
from nnunet_hrmedseg.encoders.image_sources import find_images
from nnunet_hrmedseg.errors import DataError
from nnunet_hrmedseg.io.image_formats import decode
from nnunet_hrmedseg.prompting.predictor import _as_picture

COLORS = np.random.default_rng(0).integers(100, 3000, (20, 30, 3)).astype(np.uint16)  # of 12 bits


def stretched(values):
    low, high = np.percentile(values, (0.5, 99.5))
    return np.clip((values.astype(float) - low) * 255 / (high - low), 0, 255).round()


def frames(count, size=(30, 20)):
    return [Image.new("RGB", size, (60 * number, 0, 0)) for number in range(count)]


def write_png_of_16_bits(file):
    sitk.WriteImage(sitk.GetImageFromArray(COLORS, isVector=True), str(file))


# ---- more than 8 bits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byteorder": ">"},
        {"compression": "lzw"},
        {"compression": "deflate", "predictor": True},
        {"bigtiff": True},
        {"planarconfig": "separate"},
        {"alpha": True, "extrasamples": ["unassalpha"]},
    ],
    ids=lambda options: ",".join(options) or "plain",
)
@pytest.mark.parametrize("stream", [False, True])
def test_color_tif_of_12_bits_is_stretched(tmp_path, options, stream):
    file, pixels = str(tmp_path / "a.tif"), COLORS
    if options.get("alpha"):
        pixels = np.dstack([COLORS, np.full((20, 30), 65535, np.uint16)])
    if "planarconfig" in options:
        pixels = np.moveaxis(pixels, -1, 0)
    tifffile.imwrite(file, pixels, photometric="rgb", **{k: v for k, v in options.items() if k != "alpha"})
    found = decode(io.BytesIO((tmp_path / "a.tif").read_bytes()) if stream else file)
    assert found.mode == "RGB"
    assert np.abs(np.asarray(found, float) - stretched(COLORS)).max() <= 1


def test_color_tif_of_12_bits_follows_its_orientation(tmp_path):
    file = str(tmp_path / "a.tif")
    tifffile.imwrite(file, COLORS, photometric="rgb", extratags=[(0x0112, "H", 1, 6, True)])
    found = np.asarray(decode(file), float)
    assert found.shape == (30, 20, 3)
    assert np.abs(found - np.rot90(stretched(COLORS), -1)).max() <= 1


def test_color_tif_of_8_bits_keeps_its_values(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", COLORS.astype(np.uint8), photometric="rgb")
    assert np.array_equal(np.asarray(decode(str(tmp_path / "a.tif"))), COLORS.astype(np.uint8))


def _png_with_alpha(file):
    file.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(COLORS[..., :2])))


def _ppm(file):
    file.write_bytes(b"P6\n30 20\n65535\n" + COLORS.astype(">u2").tobytes())


def _jp2(file):
    file.write_bytes(imagecodecs.jpeg2k_encode(COLORS, level=0, reversible=True))


def _cmyk(file):
    tifffile.imwrite(file, np.dstack([COLORS, COLORS[..., 0]]), photometric="separated")


@pytest.mark.parametrize(
    "name, write, message",
    [
        ("a.png", write_png_of_16_bits, "PNG of more than 8 bits with color.*save it as TIFF"),
        ("a.png", _png_with_alpha, "PNG of more than 8 bits"),
        ("a.ppm", _ppm, "PPM of more than 8 bits"),
        ("a.jp2", _jp2, "JPEG2000 of more than 8 bits"),
        ("a.tif", _cmyk, "color space SEPARATED: save it as RGB"),
    ],
)
def test_colors_that_would_lose_bits_are_rejected(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(DataError, match=message):
        decode(str(tmp_path / name))


def test_gray_images_of_16_bits_are_stretched_in_every_format(tmp_path):
    gray = np.ascontiguousarray(COLORS[..., 0])
    Image.fromarray(gray).save(tmp_path / "a.png")
    (tmp_path / "a.jp2").write_bytes(imagecodecs.jpeg2k_encode(gray, level=0, reversible=True))
    (tmp_path / "a.pgm").write_bytes(b"P5\n30 20\n65535\n" + gray.astype(">u2").tobytes())
    tifffile.imwrite(tmp_path / "a.tif", gray)
    for file in tmp_path.iterdir():
        assert np.abs(np.asarray(decode(str(file)), float) - stretched(gray)).max() <= 1, file.name


def test_image_opened_with_fewer_bits_is_rejected(tmp_path):
    write_png_of_16_bits(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", COLORS, photometric="rgb")
    for name in ("a.png", "a.tif"):
        with Image.open(tmp_path / name) as opened, pytest.raises(DataError, match=f"{name}.*give the array"):
            _as_picture(opened)
    assert _as_picture(COLORS).getextrema()[0] == (0, 255)


# ---- kinds of files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.webp", "a.gif", "a.jp2", "a.ppm", "a.jfif", "A.WEBP"])
def test_other_formats_are_read_from_folders(tmp_path, name):
    image = Image.new("RGB", (30, 20), (200, 100, 50))
    lossless = {"lossless": True} if name.lower().endswith("webp") else {}
    image.save(tmp_path / name, format="JPEG" if name == "a.jfif" else None, **lossless)
    found = CanvasImages(find_images([tmp_path]), (16, 32))
    assert len(found) == 1
    assert np.abs(found[0].image[:, 5, 5].int().numpy() - (200, 100, 50)).max() <= 3


def test_unsupported_formats_are_reported(tmp_path):
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    for name in ("b.heic", "c.HEIC", "d.nii.gz", "e.dcm", "._f.dcm", "notes.txt", "a.json"):
        (tmp_path / name).write_bytes(b"")
    found = find_images([tmp_path])
    assert len(found) == 1
    assert found.faults == [
        f"{tmp_path}: 6 other files are skipped: ._f.dcm, b.heic, c.HEIC, d.nii.gz, e.dcm, notes.txt"
    ]


# ---- several pages ---------------------------------------------------------------------------------------------------


def _stack(file):
    tifffile.imwrite(file, COLORS[None, ..., 0].repeat(4, 0), photometric="minisblack")


def _imagej(file):
    tifffile.imwrite(file, COLORS[None, ..., 0].repeat(4, 0), imagej=True)


def _single_header(file):
    tifffile.imwrite(file, COLORS[None, ..., 0].repeat(4, 0), photometric="minisblack", truncate=True)


def _floats(file):
    tifffile.imwrite(file, COLORS[None].repeat(4, 0).astype(np.float32), photometric="rgb")


def _similar_sizes(file):
    with tifffile.TiffWriter(file) as tif:
        for rows in (20, 19, 20, 20):
            tif.write(COLORS[:rows], photometric="rgb", metadata=None)


def _frames(file):
    first, *rest = frames(4)
    first.save(file, save_all=True, append_images=rest)


@pytest.mark.parametrize(
    "name, write",
    [
        ("a.tif", _stack),
        ("a.tif", _imagej),
        ("a.tif", _single_header),
        ("a.tif", _floats),
        ("a.tif", _similar_sizes),
        ("a.gif", _frames),
        ("a.webp", _frames),
        ("a.png", _frames),
    ],
)
def test_several_pages_are_rejected(tmp_path, name, write):
    write(tmp_path / name)
    for file in (str(tmp_path / name), io.BytesIO((tmp_path / name).read_bytes())):
        with pytest.raises(DataError, match="it holds 4 (pages|frames) of 30 x 20 pixels"):
            decode(file)


def test_previews_masks_and_reduced_copies_are_skipped(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for step in (1, 2, 4):
            tif.write(COLORS[::step, ::step].astype(np.uint8), photometric="rgb", metadata=None)
        tif.write(np.ones((20, 30), bool), photometric="mask", subfiletype=4, metadata=None)
    assert np.array_equal(np.asarray(decode(str(tmp_path / "a.tif"))), COLORS.astype(np.uint8))
    first, *rest = frames(2)
    first.save(tmp_path / "a.mpo", save_all=True, append_images=rest)
    (tmp_path / "a.mpo").rename(tmp_path / "phone.jpg")
    assert decode(str(tmp_path / "phone.jpg")).size == (30, 20)


@pytest.mark.parametrize("write, message", [(write_png_of_16_bits, "more than 8 bits"), (_frames, "4 frames")])
def test_cases_of_raw_datasets_are_checked_in_the_same_way(tmp_path, write, message):
    (tmp_path / "imagesTr").mkdir()
    content = {"channel_names": {"0": "R"}, "labels": {"background": 0}, "numTraining": 1, "file_ending": ".png"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    write(tmp_path / "imagesTr" / "a_0000.png")
    item = CanvasImages(find_images([tmp_path]), (16, 32))[0]
    assert item.image is None and message in item.reason
