"""Files that are cut off, of another kind than their name, or with a wrong description: no prediction, but a reason."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile

from hrmedseg_onnx import dicom_cases
from hrmedseg_onnx.errors import CheckpointError, DataError, SetupError
from hrmedseg_onnx.image_check import check_image
from hrmedseg_onnx.image_files import read_image
from hrmedseg_onnx.predict import find_inputs
from hrmedseg_onnx.providers import open_session
from tests.client.test_sidecar import GOOD

READERS = ["SimpleITKIO", "NibabelIO"]


@pytest.fixture
def volume(tmp_path):
    file = tmp_path / "a_0000.nii.gz"
    pixels = np.random.default_rng(0).normal(size=(20, 21, 22)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(pixels, np.eye(4)), file)
    return file


@pytest.mark.parametrize("reader", READERS)
def test_compressed_volume_that_is_cut_off_is_refused(volume, reader):
    """SimpleITK, nnU-Net's reader, reads zeros for what is missing."""
    whole = volume.read_bytes()
    assert read_image([volume], reader).data.shape == (1, 22, 21, 20)
    for length in (len(whole) // 2, len(whole) - 9):
        volume.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a_0000.nii.gz cannot be read: .*EOFError"):
            read_image([volume], reader)


def test_volume_that_is_not_compressed_despite_its_name_is_read_as_by_simpleitk(volume):
    wanted = read_image([volume], "SimpleITKIO").data
    volume.write_bytes(gzip.decompress(volume.read_bytes()))
    np.testing.assert_array_equal(read_image([volume], "SimpleITKIO").data, wanted)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("a.nii.gz", b"", "it is empty: download"),
        ("a.nii.gz", b"<!DOCTYPE html><html>", "it is a web page"),
        ("a.nii.gz", b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
        ("a.nii", gzip.compress(b"nothing", mtime=0), "it is packed with gzip: unpack it first"),
        ("a.nii", b"nothing", r"[^\n]+Error\)"),  # in one line
    ],
)
def test_files_of_another_kind_are_named(tmp_path, reader, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"^[^\n]*{name} cannot be read: {reason}") as raised:
        read_image([tmp_path / name], reader)
    assert "\n" not in str(raised.value) and "Exception thrown" not in str(raised.value)


@pytest.mark.parametrize("spacing", [{}, [1, 2, 3], {"spacing": [1, 2]}, {"spacing": [1, "a", 2]}, {"spacing": None}])
def test_wrong_spacing_of_a_tiff_volume_is_reported(tmp_path, spacing):
    tifffile.imwrite(tmp_path / "a_0000.tif", np.zeros((3, 4, 5), np.uint8))
    (tmp_path / "a.json").write_text(json.dumps(spacing))
    with pytest.raises(DataError, match=r"a.json must hold the spacing .*three numbers"):
        read_image([tmp_path / "a_0000.tif"], "Tiff3DIO")
    (tmp_path / "a.json").write_text("no JSON")
    with pytest.raises(DataError, match=r"a.json, with the spacing of an image, is not valid JSON"):
        read_image([tmp_path / "a_0000.tif"], "Tiff3DIO")


def test_image_without_pixels_is_reported():
    with pytest.raises(DataError, match="The image has no pixels, but the shape 1 x 3 x 0 x 4"):
        check_image(np.zeros((1, 3, 0, 4)), ["gray"], "the model was trained with")


@pytest.mark.parametrize(
    "content, kind",
    [
        (b"", "empty"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS"),
    ],
)
def test_other_files_in_place_of_a_model_are_named(tmp_path, content, kind):
    (tmp_path / "fold_0.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"fold_0.onnx is not an ONNX model, but {kind}.*: .*(download|pull)"):
        open_session(tmp_path / "fold_0.onnx")


def _forbid(function, name: str):
    """Return a function that may not read the file or folder of this name; root may read everything."""

    def read(file: Path, *arguments):
        if file.name == name:
            raise PermissionError(13, "Permission denied", str(file))
        return function(file, *arguments)

    return read


def test_folder_that_may_not_be_read_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "iterdir", _forbid(Path.iterdir, tmp_path.name))
    sidecar = replace(GOOD, image_reader="NaturalImage2DIO", file_ending=".png")
    with pytest.raises(SetupError, match=f"{tmp_path.name} may not be read. Permit reading it"):
        find_inputs([tmp_path], sidecar)


def test_dicom_file_that_may_not_be_read_does_not_affect_the_others(tmp_path, monkeypatch):
    pytest.importorskip("pydicom")
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    monkeypatch.setattr(dicom_cases, "is_dicom", _forbid(dicom_cases.is_dicom, "a"))
    monkeypatch.setattr(dicom_cases, "is_image", lambda file: True)
    sidecar = replace(GOOD, image_reader="HRMedSegDicomIO", file_ending=".dcm")
    cases, _ = find_inputs([tmp_path], sidecar, dicom_seg=True)
    assert [case.name for case in cases] == ["a", "b"]
    with pytest.raises(SetupError, match="a may not be read"):
        find_inputs([tmp_path / "a"], sidecar, dicom_seg=True)
