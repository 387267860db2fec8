"""Photos: the pixels that `hrmedseg dataset` stores, the channels of the model, and damaged or misnamed files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrmedseg_onnx import image_check
from hrmedseg_onnx.errors import DataError
from hrmedseg_onnx.image_files import read_image
from hrmedseg_onnx.photos import fit_channels, read_photo
from nnunet_hrmedseg.datasets import pixels as dataset
from tests.fuzzing import check

READER = "NaturalImage2DIO"
COLOR = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def _save(file: Path, mode: str = "RGB", orientation: int | None = None, **options) -> Path:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(COLOR).convert(mode).save(file, exif=exif.tobytes(), **options)
    return file


def _channels(file: Path, *names: str) -> np.ndarray:
    return read_image([file], READER, names).data[:, 0]


@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 99])
@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
def test_orientation_is_that_of_the_dataset(tmp_path, name, orientation):
    file = _save(tmp_path / name, orientation=orientation)
    pixels = read_photo(file)
    assert pixels.shape[:2] == ((20, 12) if orientation in (5, 6, 7, 8) else (12, 20))
    np.testing.assert_array_equal(pixels, dataset.read_image(file))


@pytest.mark.parametrize(
    "name, mode",
    [("a.JPG", "L"), ("a.jpeg", "CMYK"), ("a.jfif", "RGB"), ("a.webp", "RGBA"), ("a.gif", "P"), ("a.gif", "L")],
)
def test_colors_are_those_of_the_dataset(tmp_path, name, mode):
    file = _save(tmp_path / name, mode)
    pixels = read_photo(file)
    assert pixels.dtype == np.uint8 and pixels.ndim == (2 if mode == "L" and name == "a.JPG" else 3)
    np.testing.assert_array_equal(pixels, dataset.read_image(file))


def test_png_named_as_a_jpeg_is_read(tmp_path):
    file = _save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(read_photo(file), COLOR)


def test_damaged_exif_data_does_not_lose_the_image(tmp_path):
    file = tmp_path / "a.jpg"
    Image.fromarray(COLOR).save(file, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read_photo(file).shape == (12, 20, 3)


def test_previews_in_the_file_of_a_phone_are_passed_over(tmp_path):
    file = tmp_path / "a.jpg"
    photo, preview = Image.fromarray(COLOR), Image.fromarray(COLOR[:4, :4])
    photo.save(file, format="MPO", save_all=True, append_images=[preview])
    assert Image.open(file).n_frames == 2
    assert read_photo(file).shape == (12, 20, 3)
    np.testing.assert_array_equal(read_photo(file), dataset.read_image(file))


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_animations_are_refused(tmp_path, name):
    frames = [Image.fromarray(COLOR), Image.fromarray(255 - COLOR)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=f"{name} holds 2 frames"):
        read_image([tmp_path / name], READER)


# ---- channels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", ["R G B", "red green blue", "Red_0 Green_0 Blue_0", "rgb_to_0_1 rgb_to_0_1 rgb_to_0_1"]
)
def test_gray_photo_stands_for_three_colors(tmp_path, names):
    file = _save(tmp_path / "a.jpg", "L")
    channels = _channels(file, *names.split())
    assert channels.shape == (3, 12, 20)
    np.testing.assert_array_equal(channels, np.stack([read_photo(file)] * 3))


@pytest.mark.parametrize("names", ["DAPI FITC TRITC", "RFP GFP BFP", "gray gray gray"])
def test_gray_photo_stands_for_no_other_three_channels(tmp_path, names):
    with pytest.raises(DataError, match=f"a.jpg is gray.*three channels .{', '.join(names.split())}"):
        _channels(_save(tmp_path / "a.jpg", "L"), *names.split())


def test_color_photo_without_colors_is_gray(tmp_path):
    gray = Image.fromarray(COLOR).convert("L")
    gray.convert("RGB").save(tmp_path / "gray.jpg")
    assert read_photo(tmp_path / "gray.jpg").ndim == 3
    np.testing.assert_array_equal(
        _channels(tmp_path / "gray.jpg", "gray")[0], read_photo(tmp_path / "gray.jpg")[..., 0]
    )
    with pytest.raises(DataError, match="color.jpg has colors.*single channel .gray"):
        _channels(_save(tmp_path / "color.jpg"), "gray")


def test_photos_of_single_channels_are_joined(tmp_path):
    files = [_save(tmp_path / f"a_000{c}.jpg", "L") for c in range(2)]
    assert read_image(files, READER, ["red", "green"]).data.shape == (2, 1, 12, 20)
    with pytest.raises(DataError, match="color.jpg has colors.*single channel .green"):
        read_image([files[0], _save(tmp_path / "color.jpg")], READER, ["red", "green"])


def test_other_numbers_of_channels_are_left_to_the_check_of_the_model():
    assert fit_channels(COLOR[..., 0][None], ["a", "b"], Path("a.jpg")).shape == (1, 12, 20)


def test_pictures_keep_the_channels_of_nnunet(tmp_path):
    for mode, channels in (("L", 1), ("RGBA", 4)):
        Image.fromarray(COLOR).convert(mode).save(tmp_path / "a.png")
        assert len(_channels(tmp_path / "a.png", "R", "G", "B")) == channels


# ---- damaged files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.gif"])
def test_truncated_photos_are_refused(tmp_path, name):
    file = _save(tmp_path / name)
    content = file.read_bytes()
    for length in (0, 3, len(content) // 2, len(content) - len(content) // 4):
        file.write_bytes(content[:length])
        with pytest.raises(DataError, match=name):
            read_image([file], READER)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.gif"])
def test_damaged_photos_are_read_or_refused(tmp_path, name):
    file = _save(tmp_path / name, orientation=6)

    def whole(image):
        assert image.data.ndim == 4 and image.data.dtype == np.float32 and image.data.min() >= 0

    assert check(file, lambda: read_image([file], READER), name, kind=DataError, whole=whole) > 0


def test_other_files_named_as_photos_are_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(DataError, match="a.jpg is not an image that can be read, despite its name"):
        read_image([tmp_path / "a.jpg"], READER)


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize("content, kind", [(b"", "empty"), (b"<!DOCTYPE html>", "a web page")])
def test_other_kinds_of_files_are_named(tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} is {kind}"):
        read_image([tmp_path / name], READER)


def test_huge_photos_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    limit = Image.MAX_IMAGE_PIXELS
    small, large = _save(tmp_path / "small.jpg"), tmp_path / "large.jpg"
    stream = io.BytesIO()
    Image.new("L", (60_000, 1)).save(stream, "JPEG")
    content = stream.getvalue()
    start = content.index(b"\xff\xc0")  # marker of the size: length, bits, height
    large.write_bytes(content[: start + 5] + (60_000).to_bytes(2, "big") + content[start + 7 :])
    with pytest.raises(DataError, match="large.jpg declares more than 400,000,000 pixels"):
        read_image([large], READER)
    monkeypatch.setattr(image_check, "MAX_PIXELS", 12 * 20 - 1)
    with pytest.raises(DataError, match="small.jpg declares more than"):
        read_image([small], READER)
    assert limit == Image.MAX_IMAGE_PIXELS
