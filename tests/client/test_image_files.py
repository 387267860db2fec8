"""Files of cases: found by nnU-Net's names, read and written with the same values as nnU-Net's readers."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_file_ending
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder
from skimage import io

from hrmedseg_onnx.cases import find_cases
from hrmedseg_onnx.image_files import read_image, readable_endings, write_label_map
from nnunet_hrmedseg.errors import DataError, SetupError

RANDOM = np.random.default_rng(0)
GRAY = RANDOM.integers(0, 256, (30, 41), dtype=np.uint8)
RGB = RANDOM.integers(0, 256, (30, 41, 3), dtype=np.uint8)
RGBA = RANDOM.integers(0, 256, (30, 41, 4), dtype=np.uint8)
DEEP = RANDOM.integers(0, 65536, (30, 41), dtype=np.uint16)
REAL = RANDOM.normal(size=(30, 41)).astype(np.float32)
PICTURES = {
    "gray.png": GRAY,
    "gray.bmp": GRAY,
    "gray.tif": GRAY,
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
def test_unusual_pngs_are_read_as_by_nnunet(tmp_path, mode):
    file = tmp_path / "odd.png"
    if mode == "I;16":
        PIL.Image.fromarray(DEEP).save(file)
    else:
        PIL.Image.fromarray(RGB).convert(mode).save(file)
    if mode == "LA":  # gray with transparency: nnU-Net stops with an assertion
        with pytest.raises(DataError, match="odd.png has the shape 30 x 41 x 2.*gray or RGB"):
            read_image([file], "NaturalImage2DIO")
        return
    wanted, _ = NaturalImage2DIO().read_images([str(file)])
    np.testing.assert_array_equal(read_image([file], "NaturalImage2DIO").data, wanted)


@pytest.mark.parametrize("ending", [".png", ".bmp"])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "MPO", "TIFF", "PPM", "JPEG2000", "PNG", "BMP"])
def test_pictures_of_another_format_than_their_name_are_read_as_by_nnunet(tmp_path, kind, ending):
    file = tmp_path / f"a{ending}"
    several = {"save_all": True, "append_images": [PIL.Image.fromarray(GRAY[:4, :4])]} if kind == "MPO" else {}
    PIL.Image.fromarray(RGB).save(file, kind, **several)
    wanted, _ = NaturalImage2DIO().read_images([str(file)])
    np.testing.assert_array_equal(read_image([file], "NaturalImage2DIO").data, wanted)


def test_picture_of_several_frames_is_refused(tmp_path):
    frames = [PIL.Image.fromarray(GRAY), PIL.Image.fromarray(255 - GRAY)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="a.png holds 2 frames or pages"):
        read_image([tmp_path / "a.png"], "NaturalImage2DIO")


def test_channels_in_separate_files(tmp_path):
    for c in range(2):
        io.imsave(tmp_path / f"a_000{c}.png", GRAY + c, check_contrast=False)
    files = sorted(tmp_path.iterdir())
    data = read_image(files, "NaturalImage2DIO").data
    assert data.shape == (2, 1, 30, 41) and data.dtype == np.float32
    np.testing.assert_array_equal(data[1, 0], GRAY + 1)
    io.imsave(files[1], GRAY[1:], check_contrast=False)
    with pytest.raises(DataError, match="1 x 30 x 41.*1 x 29 x 41"):
        read_image(files, "NaturalImage2DIO")


@pytest.mark.parametrize("shape", [(7, 8, 9), (8, 9)])
@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
def test_volumes_are_read_and_written_as_by_nnunet(tmp_path, reader, shape):
    if reader is NibabelIO and len(shape) == 2:
        pytest.skip("nnU-Net's NibabelIO reads only volumes")
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


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
@pytest.mark.parametrize("channels", [1, 2])
def test_fourth_axis_of_a_volume_holds_the_channels(tmp_path, reader, channels):
    file, affine = tmp_path / "a_0000.nii.gz", np.diag([0.5, 1, 4, 1.0])
    affine[:3, 3] = 5, 6, 7
    volume = RANDOM.normal(size=(4, 5, 6, channels)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, affine), file)
    image = read_image([file], reader.__name__)
    np.testing.assert_array_equal(image.data, volume.transpose())
    # nnU-Net's NibabelIO reads volumes of three axes alone
    np.testing.assert_array_equal(image.data, SimpleITKIO().read_images([str(file)])[0])
    write_label_map(np.ones((6, 5, 4), np.uint8), tmp_path / "a.nii.gz", reader.__name__, image.geometry)
    written = nibabel.load(tmp_path / "a.nii.gz")
    assert written.shape == (4, 5, 6)
    np.testing.assert_allclose(written.affine, affine)


@pytest.mark.parametrize("shape", [(5, 6, 7, 3), (6, 7, 3)])
def test_volumes_of_vectors_are_refused(tmp_path, shape):
    image = sitk.GetImageFromArray(RANDOM.integers(0, 9, shape, dtype=np.uint8), isVector=True)
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    with pytest.raises(DataError, match="a.mha has the shape .*not as a vector for each voxel"):
        read_image([tmp_path / "a.mha"], "SimpleITKIO")


def _sheared(file: Path) -> Path:
    """Write a volume whose affine SimpleITK rejects, because its axes are not at right angles."""
    affine = np.array([[1, 0.3, 0, -5], [0, 1, 0, 7], [0, 0, 2, 9], [0, 0, 0, 1.0]])
    image = nibabel.Nifti1Image(RANDOM.normal(size=(5, 6, 7)).astype(np.float32), affine)
    image.set_qform(None, 0)
    nibabel.save(image, file)
    return file


def test_sheared_volume_is_read_and_written_as_by_nnunet(tmp_path):
    file = _sheared(tmp_path / "a_0000.nii.gz")
    reader = determine_reader_writer_from_file_ending(".nii.gz", str(file), verbose=False)
    assert reader is NibabelIO
    image = read_image([file], "NibabelIO")
    wanted, properties = NibabelIO().read_images([str(file)])
    np.testing.assert_array_equal(image.data, wanted)
    labels = (wanted[0] > 0).astype(np.uint8)
    reader().write_seg(labels, str(tmp_path / "theirs.nii.gz"), properties)
    write_label_map(labels, tmp_path / "ours.nii.gz", "NibabelIO", image.geometry)
    ours, theirs = nibabel.load(tmp_path / "ours.nii.gz"), nibabel.load(tmp_path / "theirs.nii.gz")
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    assert ours.get_data_dtype() == np.uint8


def test_sheared_volume_for_a_model_with_another_reader_is_reported(tmp_path):
    file = _sheared(tmp_path / "a_0000.nii.gz")
    with pytest.raises(DataError, match=r"a_0000.nii.gz has an affine .* not at right angles.*set_sform"):
        read_image([file], "SimpleITKIO")


def test_simpleitk_reads_volumes_without_nibabel(tmp_path, monkeypatch):
    straight, sheared = tmp_path / "a_0000.nii.gz", _sheared(tmp_path / "b_0000.nii.gz")
    sitk.WriteImage(_volume(RANDOM.integers(-1000, 1000, (3, 4, 5)).astype(np.int16)), str(straight))
    wanted = read_image([straight], "NibabelIO")
    monkeypatch.setitem(sys.modules, "nibabel", None)
    image = read_image([straight], "NibabelIO")
    np.testing.assert_array_equal(image.data, wanted.data)
    write_label_map(np.ones((3, 4, 5), np.uint8), tmp_path / "a.nii.gz", "NibabelIO", image.geometry)
    assert _geometry(sitk.ReadImage(str(tmp_path / "a.nii.gz"))) == _geometry(sitk.ReadImage(str(straight)))
    with pytest.raises(SetupError, match="b_0000.nii.gz cannot be read without nibabel.*pip install nibabel"):
        read_image([sheared], "NibabelIO")


def test_nibabel_reads_an_image_of_one_slice(tmp_path):
    file = tmp_path / "a_0000.nii.gz"
    sitk.WriteImage(_volume(RANDOM.integers(0, 9, (4, 5)).astype(np.int16)), str(file))
    image = read_image([file], "NibabelIO")
    np.testing.assert_array_equal(image.data, read_image([file], "SimpleITKIO").data)
    write_label_map(image.data[0].astype(np.uint8), tmp_path / "a.nii.gz", "NibabelIO", image.geometry)
    assert nibabel.load(tmp_path / "a.nii.gz").shape == (5, 4)


def test_tiff_volumes_are_read_with_their_spacing(tmp_path):
    file = tmp_path / "a_0000.tif"
    tifffile.imwrite(file, RANDOM.integers(0, 255, (5, 6, 7), dtype=np.uint8))
    (tmp_path / "a.json").write_text(json.dumps({"spacing": [3, 2, 1]}))
    wanted, properties = Tiff3DIO().read_images([str(file)])
    # editors on Windows start files with this mark, which nnU-Net does not read
    (tmp_path / "a.json").write_text(json.dumps({"spacing": [3, 2, 1]}), encoding="utf-8-sig")
    image = read_image([file], "Tiff3DIO")
    np.testing.assert_array_equal(image.data, wanted)
    (tmp_path / "out").mkdir()
    write_label_map((wanted[0] > 99).astype(np.uint8), tmp_path / "out" / "a.tif", "Tiff3DIO", image.geometry)
    labels, written = Tiff3DIO().read_seg(str(tmp_path / "out" / "a.tif"))
    np.testing.assert_array_equal(labels[0], wanted[0] > 99)
    assert written["spacing"] == properties["spacing"] == [3, 2, 1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.json", "a.tif"]


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("largest", [1, 254, 255])
def test_label_maps_of_pictures_are_written(tmp_path, ending, largest):
    if ending == ".bmp" and largest == 255:
        pytest.skip("BMP does not support 16 bits, as in nnU-Net")
    labels = np.zeros((1, 4, 30), np.uint16)  # four rows must not be treated as colors
    labels[0, 1] = largest
    file = tmp_path / f"a{ending}"
    write_label_map(labels, file, "NaturalImage2DIO", {})
    read, _ = NaturalImage2DIO().read_seg(str(file))
    np.testing.assert_array_equal(read[0], labels)
    assert io.imread(file).dtype == (np.uint8 if largest < 255 else np.uint16)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_volumes_with_different_channels_are_rejected(tmp_path):
    a, b = tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz"
    volume = _volume(np.zeros((3, 4, 5), np.int16))
    sitk.WriteImage(volume, str(a))
    volume.SetSpacing((1.0, 1.0, 1.0))
    sitk.WriteImage(volume, str(b))
    with pytest.raises(DataError, match="differ in spacing"):
        read_image([a, b], "SimpleITKIO")


def test_unreadable_files_are_reported(tmp_path):
    file = tmp_path / "a_0000.png"
    with pytest.raises(DataError, match="a_0000.png does not exist"):
        read_image([file], "NaturalImage2DIO")
    file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="a_0000.png is not an image that can be read, despite its name"):
        read_image([file], "NaturalImage2DIO")


@pytest.mark.parametrize("reader", [NaturalImage2DIO, Tiff3DIO, SimpleITKIO, NibabelIO])
def test_file_endings_are_those_of_nnunet(reader):
    assert set(reader.supported_file_endings) <= set(readable_endings(reader.__name__))


def test_spacing_of_a_tiff_without_a_channel_number(tmp_path):
    for name, spacing in (("volume", 3), ("v", 7)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"spacing": [spacing, 2, 1]}))
    tifffile.imwrite(tmp_path / "volume.tif", RANDOM.integers(0, 255, (5, 6, 7), dtype=np.uint8))
    assert read_image([tmp_path / "volume.tif"], "Tiff3DIO").geometry == {"spacing": [3, 2, 1]}


# ---- files of a case -------------------------------------------------------------------------------------------------


@pytest.fixture
def empty_files(tmp_path):
    """Return a function that creates empty files in a folder and returns them."""

    def touch(*names) -> list:
        files = [tmp_path / name for name in names]
        for file in files:
            file.parent.mkdir(exist_ok=True)
            file.touch()
        return files

    return touch


def _names(cases) -> dict:
    return {case.name: [file.name for file in case.files] for case in cases}


def test_cases_of_a_folder_are_those_of_nnunet(tmp_path, empty_files):
    empty_files("a_0000.png", "a_0001.png", "b_c_0000.png", "a_1_0000.png", "note.txt", "a_0000.tif")
    wanted = create_lists_from_splitted_dataset_folder(str(tmp_path), ".png", num_processes=1)
    found = find_cases([tmp_path], ".png", channels=2)
    assert [[str(file) for file in case.files] for case in found] == sorted(map(list, wanted))
    assert [case.name for case in found] == ["a", "a_1", "b_c"]
    assert not any(case.fault for case in found)


@pytest.mark.parametrize(
    "channels, names, message",
    [
        (2, ["a_0001.png"], "There is a_0001.png; .* a_0000.png to a_0001.png, or a_0000.png alone"),
        (3, ["a_0000.png", "a_0002.png"], "There is a_0000.png, a_0002.png; .* a_0000.png to a_0002.png"),
        (1, ["a_0012.png"], r"There is a_0012.png; the model takes a_0000.png\. .*give the files"),
        (1, ["a_0000.png", "a_0001.png"], r"There is a_0000.png, a_0001.png; the model takes a_0000.png\."),
        (3, [f"a_{number:04}.png" for number in (12, 13, 14)], "a_0012.png, a_0013.png, a_0014.png"),
    ],
)
def test_missing_channels_in_a_folder_are_reported(tmp_path, empty_files, channels, names, message):
    empty_files("whole_0000.png", *names)
    case, whole = find_cases([tmp_path], ".png", channels=channels)
    assert (case.name, whole.name) == ("a", "whole") and not whole.fault
    assert re.search(message, case.fault)


def test_single_files_are_grouped_into_cases(empty_files):
    files = empty_files("a_0001.png", "a_0000.png", "photo.BMP", "scan.nii.gz", "b.c.tiff")
    readable = (".png", ".bmp", ".tif", ".tiff")
    found = find_cases([*files[:3], files[4]], ".png", channels=2, readable=readable)
    assert _names(found) == {"a": ["a_0000.png", "a_0001.png"], "photo": ["photo.BMP"], "b.c": ["b.c.tiff"]}
    assert _names(find_cases(files[3:4], ".nii.gz", channels=1)) == {"scan": ["scan.nii.gz"]}
    assert _names(find_cases(files[3:4], ".mha", channels=1, readable=(".nii.gz",))) == {"scan": ["scan.nii.gz"]}


@pytest.mark.parametrize(
    "channels, numbers, cases",
    [
        (1, [12], ["IMG_0012"]),
        (3, [12], ["IMG_0012"]),
        (1, [12, 13], ["IMG_0012", "IMG_0013"]),
        (2, [1, 2], ["IMG_0001", "IMG_0002"]),
        (1, [0, 1], ["IMG_0000", "IMG_0001"]),
        (3, [0, 1], ["IMG_0000", "IMG_0001"]),
        (1, [0], ["IMG"]),
        (3, [0], ["IMG"]),
        (2, [0, 1], ["IMG"]),
        (3, [0, 1, 2], ["IMG"]),
    ],
)
def test_numbers_of_a_camera_are_not_channels(empty_files, channels, numbers, cases):
    files = empty_files(*(f"IMG_{number:04}.png" for number in numbers))
    found = find_cases(files, ".png", channels=channels)
    assert [case.name for case in found] == cases
    assert sorted(file for case in found for file in case.files) == files
    assert not any(case.fault for case in found)


def test_single_files_of_another_kind_are_rejected(empty_files):
    photo, text = empty_files("photo.jpg", "notes.txt")
    with pytest.raises(DataError, match=r"photo.jpg is of another .* are .png files \(.bmp, .tif can be .* to .png"):
        find_cases([photo], ".png", channels=3, readable=(".png", ".bmp", ".tif"))
    with pytest.raises(DataError, match=r"notes.txt is of another .* are .png files\. Convert"):
        find_cases([text], ".png", channels=3)
    assert _names(find_cases([photo], ".jpg", channels=3)) == {"photo": ["photo.jpg"]}


def test_inputs_that_are_not_cases_are_rejected(tmp_path, empty_files):
    with pytest.raises(DataError, match="does not exist"):
        find_cases([tmp_path / "nowhere"], ".png", channels=1)
    empty_files("a.png")
    with pytest.raises(DataError, match=r"CASE_0000.png.*holds a.png"):
        find_cases([tmp_path], ".png", channels=1)


@pytest.mark.parametrize(
    "names",
    [("a.png", "other/a.png"), ("a_0000.png", "other/a_0000.png"), ("a.png", "a_0000.png"), ("other", "more")],
)
def test_several_images_of_one_name_are_rejected(tmp_path, empty_files, names):
    empty_files("other/a_0000.png", "more/a_0000.png")
    files = [tmp_path / name if name in ("other", "more") else empty_files(name)[0] for name in names]
    with pytest.raises(DataError, match=r"Several images would have the label map a(_0000)?.png"):
        find_cases(files, ".png", channels=1)
