"""Files of cases: found by nnU-Net's names, read and written with the values of nnU-Net's readers."""

from __future__ import annotations

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder
from skimage import io

from nnunet_hrmedseg.deployment.cases import find_cases
from nnunet_hrmedseg.deployment.image_files import read_image, write_label_map
from nnunet_hrmedseg.errors import HRMedSegError

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (30, 41), dtype=np.uint8)
RGB = RANDOM.integers(0, 256, (30, 41, 3), dtype=np.uint8)
RGBA = RANDOM.integers(0, 256, (30, 41, 4), dtype=np.uint8)
DEEP = RANDOM.integers(0, 65536, (30, 41), dtype=np.uint16)
REAL = RANDOM.normal(size=(30, 41)).astype(np.float32)
PICTURES = {
    "grey.png": GREY,
    "grey.bmp": GREY,
    "grey.tif": GREY,
    "rgb.png": RGB,
    "rgb.bmp": RGB,
    "rgb.tif": RGB,
    "rgba.png": RGBA,
    "deep.png": DEEP,
    "deep.tif": DEEP,
    "real.tif": REAL,
    "planes.tif": np.moveaxis(RGB, -1, 0),
}


def _geometry(image: sitk.Image) -> tuple:
    return image.GetSpacing(), image.GetOrigin(), image.GetDirection()


def _volume(array: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((4.0, 1.0, 0.5)[: array.ndim])
    image.SetOrigin((-30.0, 12.5, 100.0)[: array.ndim])
    if array.ndim == 3:
        image.SetDirection((0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0))
    return image


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_read_as_by_nnunet(tmp_path, name):
    file = tmp_path / name
    io.imsave(file, PICTURES[name], check_contrast=False)
    wanted, _ = NaturalImage2DIO().read_images([str(file)])
    np.testing.assert_array_equal(read_image([file], "NaturalImage2DIO").data, wanted)


@pytest.mark.parametrize("mode", ["P", "1", "I;16", "LA"])
def test_odd_pngs_are_read_as_by_nnunet(tmp_path, mode):
    file = tmp_path / "odd.png"
    if mode == "I;16":
        PIL.Image.fromarray(DEEP).save(file)
    else:
        PIL.Image.fromarray(RGB).convert(mode).save(file)
    if mode == "LA":  # grey with transparency: nnU-Net stops with an assertion
        with pytest.raises(HRMedSegError, match="odd.png has the shape 30 x 41 x 2.*grey or RGB"):
            read_image([file], "NaturalImage2DIO")
        return
    wanted, _ = NaturalImage2DIO().read_images([str(file)])
    np.testing.assert_array_equal(read_image([file], "NaturalImage2DIO").data, wanted)


def test_channels_in_files_of_their_own(tmp_path):
    for c in range(2):
        io.imsave(tmp_path / f"a_000{c}.png", GREY + c, check_contrast=False)
    files = sorted(tmp_path.iterdir())
    data = read_image(files, "NaturalImage2DIO").data
    assert data.shape == (2, 1, 30, 41) and data.dtype == np.float32
    np.testing.assert_array_equal(data[1, 0], GREY + 1)
    io.imsave(files[1], GREY[1:], check_contrast=False)
    with pytest.raises(HRMedSegError, match="1 x 30 x 41.*1 x 29 x 41"):
        read_image(files, "NaturalImage2DIO")


@pytest.mark.parametrize("shape", [(7, 8, 9), (8, 9)])
@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
def test_volumes(tmp_path, reader, shape):
    if reader is NibabelIO and len(shape) == 2:
        pytest.skip("nnU-Net's NibabelIO takes volumes alone")
    file = tmp_path / "a_0000.nii.gz"
    sitk.WriteImage(_volume(RANDOM.integers(-1000, 1000, shape).astype(np.int16)), str(file))
    image = read_image([file], reader.__name__)
    wanted, properties = reader().read_images([str(file)])
    np.testing.assert_array_equal(image.data, wanted)
    labels = (wanted[0] > 0).astype(np.uint8)
    reader().write_seg(labels, str(tmp_path / "theirs.nii.gz"), properties)
    write_label_map(labels, tmp_path / "ours.nii.gz", reader.__name__, image.geometry)
    ours, theirs = sitk.ReadImage(str(tmp_path / "ours.nii.gz")), sitk.ReadImage(str(tmp_path / "theirs.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs))
    for mine, wanted_part in zip(_geometry(ours), _geometry(theirs), strict=True):
        np.testing.assert_allclose(mine, wanted_part, atol=1e-6)
    assert ours.GetPixelID() == sitk.sitkUInt8


def test_tiff_volumes_with_their_spacing(tmp_path):
    file = tmp_path / "a_0000.tif"
    tifffile.imwrite(file, RANDOM.integers(0, 255, (5, 6, 7), dtype=np.uint8))
    (tmp_path / "a.json").write_text(json.dumps({"spacing": [3, 2, 1]}))
    image = read_image([file], "Tiff3DIO")
    wanted, properties = Tiff3DIO().read_images([str(file)])
    np.testing.assert_array_equal(image.data, wanted)
    (tmp_path / "out").mkdir()
    write_label_map((wanted[0] > 99).astype(np.uint8), tmp_path / "out" / "a.tif", "Tiff3DIO", image.geometry)
    labels, written = Tiff3DIO().read_seg(str(tmp_path / "out" / "a.tif"))
    np.testing.assert_array_equal(labels[0], wanted[0] > 99)
    assert written["spacing"] == properties["spacing"] == [3, 2, 1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.json", "a.tif"]


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("largest", [1, 254, 255])
def test_label_maps_of_pictures(tmp_path, ending, largest):
    if ending == ".bmp" and largest == 255:
        pytest.skip("BMP has no 16 bits, in nnU-Net either")
    labels = np.zeros((1, 4, 30), np.uint16)  # four rows: not to be taken for colours
    labels[0, 1] = largest
    file = tmp_path / f"a{ending}"
    write_label_map(labels, file, "NaturalImage2DIO", {})
    read, _ = NaturalImage2DIO().read_seg(str(file))
    np.testing.assert_array_equal(read[0], labels)
    assert io.imread(file).dtype == (np.uint8 if largest < 255 else np.uint16)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_volumes_whose_channels_do_not_fit(tmp_path):
    a, b = tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz"
    volume = _volume(np.zeros((3, 4, 5), np.int16))
    sitk.WriteImage(volume, str(a))
    volume.SetSpacing((1.0, 1.0, 1.0))
    sitk.WriteImage(volume, str(b))
    with pytest.raises(HRMedSegError, match="differ in spacing"):
        read_image([a, b], "SimpleITKIO")


def test_files_that_cannot_be_read(tmp_path):
    file = tmp_path / "a_0000.png"
    with pytest.raises(HRMedSegError, match="a_0000.png does not exist"):
        read_image([file], "NaturalImage2DIO")
    file.write_bytes(b"nothing")
    with pytest.raises(HRMedSegError, match="a_0000.png cannot be read"):
        read_image([file], "NaturalImage2DIO")


def test_cases_of_a_folder_are_those_of_nnunet(tmp_path):
    for name in ("a_0000.png", "a_0001.png", "b_c_0000.png", "a_1_0000.png", "note.txt", "a_0000.tif"):
        (tmp_path / name).touch()
    wanted = create_lists_from_splitted_dataset_folder(str(tmp_path), ".png", num_processes=1)
    found = find_cases([tmp_path], ".png")
    assert [[str(file) for file in case.files] for case in found] == sorted(map(list, wanted))
    assert [case.name for case in found] == ["a", "a_1", "b_c"]


def test_single_files(tmp_path):
    names = ("a_0001.png", "a_0000.png", "photo.jpg", "scan.nii.gz")
    for name in names:
        (tmp_path / name).touch()
    files = [tmp_path / name for name in names]
    assert [case.name for case in find_cases(files[:3], ".png")] == ["a", "photo"]
    assert find_cases(files[:2], ".png")[0].files == (files[1], files[0])
    assert [case.name for case in find_cases(files[3:], ".nii.gz")] == ["scan"]


def test_what_is_no_case(tmp_path):
    with pytest.raises(HRMedSegError, match="does not exist"):
        find_cases([tmp_path / "nowhere"], ".png")
    (tmp_path / "a.png").touch()
    with pytest.raises(HRMedSegError, match=r"CASE_0000.png.*There: a.png"):
        find_cases([tmp_path], ".png")
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "a.png", tmp_path / "other" / "a.png")
    with pytest.raises(HRMedSegError, match="Several images would have the label map a.png"):
        find_cases([tmp_path / "a.png", tmp_path / "other" / "a.png"], ".png")
