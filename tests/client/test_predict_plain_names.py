"""Folders of pictures without nnU-Net's names: each file is a case, unless it may be something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrmedseg_onnx import predict_files
from hrmedseg_onnx.cases import cases_of_folder, find_cases
from hrmedseg_onnx.errors import DataError, SetupError
from hrmedseg_onnx.model import OnnxModel
from tests.deployment.tiny_models import blobs

READABLE = (".png", ".bmp", ".tif", ".tiff", ".jpg")


def _touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).touch()
    return folder


def _names(folder: Path, channels: int) -> dict[str, list[str]]:
    """Return case -> files, and check that the function without errors finds the same."""
    options = {"channels": channels, "readable": READABLE, "plain_names": True}
    cases = find_cases([folder], ".png", **options)
    assert cases_of_folder(folder, ".png", **options) == cases
    return {case.name: [file.name for file in case.files] for case in cases if not case.fault}


@pytest.mark.parametrize("channels", [1, 3])
def test_photos_of_a_camera_are_cases(tmp_path, channels):
    _touch(tmp_path, "IMG_0012.jpg", "IMG_0013.JPG", "scan.b.png", "notes.txt", "._IMG_0012.jpg")
    (tmp_path / "more.jpg").mkdir()
    assert _names(tmp_path, channels) == {
        "IMG_0012": ["IMG_0012.jpg"],
        "IMG_0013": ["IMG_0013.JPG"],
        "scan.b": ["scan.b.png"],
    }


def test_a_name_of_nnunet_decides_for_the_folder(tmp_path):
    _touch(tmp_path, "photo.jpg", "other.png", "a_0000.png")
    assert _names(tmp_path, 3) == {"a": ["a_0000.png"]}


def test_photos_that_may_be_channels_have_a_fault(tmp_path):
    _touch(tmp_path, "a_0000.jpg", "a_0001.jpg", "a_0002.jpg", "b_0000.jpg", "c_0001.jpg")
    assert list(_names(tmp_path, 3)) == ["b_0000", "c_0001"]
    cases = find_cases([tmp_path], ".png", channels=3, readable=READABLE, plain_names=True)
    assert all("may be 3 images, or the 3 channels of one" in case.fault for case in cases[:3])
    assert list(_names(tmp_path, 1)) == ["a_0000", "a_0001", "a_0002", "b_0000", "c_0001"]


def test_equal_names_are_refused_or_have_a_fault(tmp_path):
    _touch(tmp_path, "a.jpg", "a.png", "b.jpg")
    options = {"channels": 3, "readable": READABLE, "plain_names": True}
    with pytest.raises(DataError, match="Several images would have the label map a.png: .*a.jpg, .*a.png"):
        find_cases([tmp_path], ".png", **options)
    first, second = cases_of_folder(tmp_path, ".png", **options)
    assert "Several images" in first.fault and len(first.files) == 2
    assert (second.name, second.fault) == ("b", "")


def test_folders_without_images_are_refused(tmp_path):
    options = {"channels": 3, "readable": READABLE, "plain_names": True}
    assert cases_of_folder(tmp_path, ".png", **options) == []
    with pytest.raises(DataError, match="holds no images, that is, files with the ending .png, .bmp, .*nothing"):
        find_cases([tmp_path], ".png", **options)
    _touch(tmp_path, "photo.heic")
    with pytest.raises(DataError, match="It holds photo.heic. Convert them to .png"):
        find_cases([tmp_path], ".png", **options)


def test_models_whose_channels_are_files_need_the_names_of_nnunet(tmp_path):
    _touch(tmp_path, "a.png")
    assert cases_of_folder(tmp_path, ".png", channels=2, readable=READABLE) == []
    with pytest.raises(DataError, match="named as for nnU-Net: CASE_0000.png"):
        find_cases([tmp_path], ".png", channels=2, readable=READABLE)


# ---- prediction ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(pictures) -> OnnxModel:
    return OnnxModel(pictures.folder, folds=[0], mirror=False, threads=1)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Write two photos of a camera, one of them stored on its side, and half of one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(2):
        picture = np.moveaxis(blobs(np.random.default_rng(number), (50, 70), 3), 0, -1)
        Image.fromarray(picture).save(folder / f"IMG_{number + 12:04}.jpg", exif=exif if number else b"")
    (folder / "half.jpg").write_bytes((folder / "IMG_0012.jpg").read_bytes()[:900])
    return folder


@pytest.mark.slow
def test_folder_of_photos_is_predicted(model, photos, tmp_path):
    summary = predict_files(model=model, inputs=[photos], output=tmp_path / "masks")
    assert sorted(file.name for file in (tmp_path / "masks").iterdir()) == ["IMG_0012.png", "IMG_0013.png"]
    assert list(summary.failures) == ["half"] and "half.jpg cannot be read" in summary.failures["half"]
    for name, shape in (("IMG_0012", (50, 70)), ("IMG_0013", (70, 50))):
        labels = np.asarray(Image.open(summary.label_maps[name]))
        assert labels.shape == shape and len(np.unique(labels)) > 1
        np.testing.assert_array_equal(labels, model.predict(photos / f"{name}.jpg").labels[0])


@pytest.mark.slow
def test_label_maps_beside_photos_replace_nothing(model, photos):
    photo, beside = photos / "IMG_0012.jpg", photos / "IMG_0012.png"
    beside.write_bytes(b"an image, perhaps")
    with pytest.raises(SetupError, match="IMG_0012.png would be overwritten, and may be images"):
        predict_files(model=model, inputs=[photo], output=photos)
    assert beside.read_bytes() == b"an image, perhaps"
    beside.unlink()
    assert predict_files(model=model, inputs=[photo], output=photos).label_maps == {"IMG_0012": beside}
