"""`hrmedseg dataset`: from typical folders to datasets that nnU-Net's reader and integrity check accept."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image

from nnunet_hrmedseg.cli import command as cli
from nnunet_hrmedseg.datasets.make import make_dataset
from nnunet_hrmedseg.datasets.pixels import read_image
from nnunet_hrmedseg.datasets.writing import write_pixels
from nnunet_hrmedseg.errors import DataError, PlanError, SetupError
from nnunet_hrmedseg.io.dicom_reader import HRMedSegDicomIO
from tests.datasets.new_datasets import SHAPE, make, picture, read_case, square
from tests.io.dicom_files import radiograph


def test_dataset_does_not_replace_its_source(folders):
    source = folders / "raw" / "Dataset007_Test"
    for part, pixels in (("imagesTr", picture()), ("labelsTr", square())):
        (source / part).mkdir(parents=True)
        Image.fromarray(pixels).save(source / part / "a.png")
    with pytest.raises(PlanError, match="Dataset007_Test would replace the input .*imagesTr"):
        make_dataset(
            source / "imagesTr", source / "labelsTr", number=7, name="Test", raw=folders / "raw", overwrite=True
        )
    assert (source / "imagesTr" / "a.png").is_file()


@pytest.mark.slow
@pytest.mark.integrity
def test_color_images_and_masks_of_0_and_255(folders):
    for case in "abc":
        Image.fromarray(picture()).save(folders / "images" / f"{case}.png")
        Image.fromarray(square()).save(folders / "masks" / f"{case}_mask.png")
    summary = make(folders, classes=["polyp"])
    image, label = read_case(summary)
    np.testing.assert_array_equal(image, np.moveaxis(picture(), -1, 0))
    np.testing.assert_array_equal(label, square(1))
    description = json.loads((summary.folder / "dataset.json").read_text())
    assert description == {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "polyp": 1},
        "numTraining": 3,
        "file_ending": ".png",
    }
    assert summary.pixels["polyp"] == pytest.approx(8 * 14 / (24 * 32))
    assert summary.cases_with["polyp"] == 3 and summary.sizes == {SHAPE: 3}
    assert (summary.folder / "contact_sheet.png").is_file()


def test_gray_color_and_transparent_images_in_one_folder_become_rgb(folders):
    Image.fromarray(picture(1)).save(folders / "images" / "a.bmp")
    Image.fromarray(picture(3, 1)).save(folders / "images" / "b.png")
    Image.fromarray(picture(4, 2)).save(folders / "images" / "c.png")
    palette = Image.fromarray(picture(3, 3)).quantize(16)
    palette.save(folders / "images" / "d.png")
    for case in "abcd":
        Image.fromarray(square(1)).save(folders / "masks" / f"{case}.png")
    summary = make(folders)
    for case, expected in (
        ("a", np.repeat(picture(1)[..., None], 3, -1)),
        ("b", picture(3, 1)),
        ("c", picture(4, 2)[..., :3]),
        ("d", np.asarray(palette.convert("RGB"))),
    ):
        np.testing.assert_array_equal(read_case(summary, case)[0], np.moveaxis(expected, -1, 0))


def test_gray_saved_as_rgb_becomes_one_channel(folders):
    gray = picture(1)
    Image.fromarray(np.repeat(gray[..., None], 3, -1)).save(folders / "images" / "a.png")
    Image.fromarray(square(1)).save(folders / "masks" / "a.png")
    summary = make(folders)
    assert summary.channels == 1
    np.testing.assert_array_equal(read_case(summary)[0][0], gray)


def test_sixteen_bits_are_kept(folders):
    deep = picture(1, dtype=np.uint16)
    Image.fromarray(deep).save(folders / "images" / "a.png")
    tifffile.imwrite(folders / "images" / "b.tif", deep + 1)
    for case in "ab":
        Image.fromarray(square(1)).save(folders / "masks" / f"{case}.png")
    summary = make(folders)
    assert summary.file_ending == ".png"
    np.testing.assert_array_equal(read_case(summary, "a")[0][0], deep)
    np.testing.assert_array_equal(read_case(summary, "b")[0][0], deep + 1)


def test_sixteen_bit_color_becomes_tiff_because_nnunet_reads_8_bits_of_a_png(folders):
    from imagecodecs import png_encode

    deep = picture(3, dtype=np.uint16)
    (folders / "images" / "a.png").write_bytes(png_encode(deep))
    Image.fromarray(square(1)).save(folders / "masks" / "a.png")
    summary = make(folders)
    assert summary.file_ending == ".tif"
    np.testing.assert_array_equal(read_case(summary)[0], np.moveaxis(deep, -1, 0))


@pytest.mark.parametrize("mask_is_rotated", [True, False])
def test_exif_orientation_rotates_the_image_and_a_mask_of_the_stored_size(folders, mask_is_rotated):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated: viewers rotate it by 90 degrees clockwise
    Image.fromarray(picture()).save(folders / "images" / "a.png", exif=exif)
    stored = square(1)
    shown = np.rot90(stored, -1)
    Image.fromarray(np.ascontiguousarray(shown if mask_is_rotated else stored)).save(folders / "masks" / "a.png")
    image, label = read_case(make(folders))
    np.testing.assert_array_equal(image, np.moveaxis(np.rot90(picture(), -1), -1, 0))
    np.testing.assert_array_equal(label, shown)


def save_radiographs(folders, names="ab") -> np.ndarray:
    """Save the same 12-bit radiograph as MONOCHROME2, and inverted as MONOCHROME1 for the first case."""
    pixels = picture(1, dtype=np.uint16) >> 4
    for case in names:
        inverted = case == names[0]
        stored = 4095 - pixels if inverted else pixels
        photometric = "MONOCHROME1" if inverted else "MONOCHROME2"
        file = folders / "images" / f"{case}.dcm"
        radiograph(file, stored, BitsStored=12, HighBit=11, PhotometricInterpretation=photometric)
        Image.fromarray(square(1)).save(folders / "masks" / f"{case}.png")
    return pixels


def test_folder_of_dicom_files_is_kept_as_dicom(folders):
    pixels = save_radiographs(folders)
    summary = make(folders)
    assert summary.file_ending == ".dcm" and summary.channels == 1
    for case in "ab":
        file = summary.folder / "imagesTr" / f"{case}_0000.dcm"
        assert file.read_bytes() == (folders / "images" / f"{case}.dcm").read_bytes()
        images, _ = HRMedSegDicomIO().read_images([str(file)])
        np.testing.assert_array_equal(images[0, 0], pixels)
        labels, _ = HRMedSegDicomIO().read_seg(str(summary.folder / "labelsTr" / f"{case}.dcm"))
        np.testing.assert_array_equal(labels[0, 0], square(1))
    description = json.loads((summary.folder / "dataset.json").read_text())
    assert description["overwrite_image_reader_writer"] == "HRMedSegDicomIO"


def test_dicom_beside_other_images_is_converted(folders):
    pixels = save_radiographs(folders)
    Image.fromarray(picture(1)).save(folders / "images" / "c.png")
    Image.fromarray(square(1)).save(folders / "masks" / "c.png")
    summary = make(folders)
    assert summary.file_ending == ".png" and any("2 of 3 images are DICOM" in text for text in summary.warnings)
    for case in "ab":
        np.testing.assert_array_equal(read_case(summary, case)[0][0], pixels)


def test_dicom_video_is_rejected(folders):
    video = Path(pydicom.data.__path__[0]) / "test_files" / "SC_rgb_rle_2frame.dcm"
    shutil.copy(video, folders / "images" / "a.dcm")
    Image.fromarray(square(1)).save(folders / "masks" / "a.png")
    with pytest.raises(DataError, match="2 frames"):
        make(folders)


def test_files_that_need_no_conversion_are_copied_or_linked(folders):
    file = folders / "images" / "a.png"
    Image.fromarray(picture()).save(file)
    Image.fromarray(square(1)).save(folders / "masks" / "a.png")
    copied = make(folders).folder / "imagesTr" / "a_0000.png"
    assert copied.read_bytes() == file.read_bytes() and copied.stat().st_ino != file.stat().st_ino
    linked = make(folders, link=True, overwrite=True).folder / "imagesTr" / "a_0000.png"
    assert linked.stat().st_ino == file.stat().st_ino


def test_folder_that_is_not_writable_is_reported_before_images_are_read(folders, monkeypatch):
    Image.fromarray(picture()).save(folders / "images" / "a.png")
    Image.fromarray(square(1)).save(folders / "masks" / "a.png")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert make(folders, dry_run=True).cases == ["a"]
    with pytest.raises(SetupError, match="raw: permit it"):
        make(folders, show=None)


def test_dry_run_writes_nothing(folders):
    Image.fromarray(picture()).save(folders / "images" / "a.png")
    Image.fromarray(square(1)).save(folders / "masks" / "a.png")
    lines: list[str] = []
    assert make(folders, dry_run=True, show=lines.append).folder is None
    assert "1 cases, RGB, 24 x 32 pixels" in lines[0]
    assert not any((folders / "raw").iterdir())


def test_all_errors_are_reported_at_once_and_nothing_is_written(folders):
    for case in "abcd":
        Image.fromarray(picture()).save(folders / "images" / f"{case}.png")
        Image.fromarray(square(1)).save(folders / "masks" / f"{case}.png")
    Image.fromarray(square(1)[:10]).save(folders / "masks" / "b.png")
    (folders / "images" / "c.png").write_bytes(b"not an image")
    tifffile.imwrite(folders / "images" / "e.tif", np.zeros((3, *SHAPE), np.uint8), photometric="minisblack")
    Image.fromarray(square(1)).save(folders / "masks" / "e.png")
    with pytest.raises(DataError) as error:
        make(folders)
    message = str(error.value)
    assert "3 of 5 cases cannot be used; nothing was written" in message
    assert "b.png has 10 x 32 pixels" in message
    assert "c.png is not an image" in message
    assert "e.tif holds 3 pages" in message
    assert not any((folders / "raw").iterdir())


def test_existing_datasets_are_not_overwritten(folders):
    Image.fromarray(picture()).save(folders / "images" / "a.png")
    Image.fromarray(square(1)).save(folders / "masks" / "a.png")
    folder = make(folders).folder
    (folder / "note.txt").write_text("mine")
    with pytest.raises(SetupError, match="exists already.*--overwrite"):
        make(folders)
    with pytest.raises(PlanError, match="number 7 is used by .*Dataset007_Test"):
        make(folders, name="Other")
    with pytest.raises(PlanError, match="must be 1 to 999, not 0"):
        make(folders, number=0)
    with pytest.raises(PlanError, match="is not a possible name"):
        make(folders, name="My set")
    assert (folder / "note.txt").is_file()
    make(folders, overwrite=True)
    assert not (folder / "note.txt").exists()


def test_failure_while_writing_keeps_the_old_dataset(folders, monkeypatch):
    Image.fromarray(picture()).save(folders / "images" / "a.png")
    Image.fromarray(square(1)).save(folders / "masks" / "a.png")
    folder = make(folders).folder
    monkeypatch.setattr(
        "nnunet_hrmedseg.datasets.make._verify", lambda folder: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(OSError, match="full"):
        make(folders, overwrite=True)
    assert [place.name for place in (folders / "raw").iterdir()] == [folder.name]


@pytest.mark.parametrize(("orientation", "shape"), [(6, (24, 24)), (3, SHAPE), (6, SHAPE)])
def test_turned_images_of_unchanged_size_are_reported(folders, orientation, shape):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.zeros((*shape, 3), np.uint8)).save(folders / "images" / "a.jpg", exif=exif)
    mask = np.zeros(shape, np.uint8)
    mask[:4] = 1
    Image.fromarray(mask).save(folders / "masks" / "a.png")
    (folders / "masks" / "b.png").write_bytes((folders / "masks" / "a.png").read_bytes())
    Image.fromarray(np.zeros(shape, np.uint8)).save(folders / "images" / "b.png")
    warned = [text for text in make(folders, dry_run=True).warnings if "viewers turn" in text]
    assert len(warned) == (orientation == 3 or shape != SHAPE)
    assert all("without changing their size (1)" in text and "a.jpg" in text for text in warned)


def test_command_writes_the_dataset(folders, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(folders / "raw"))
    Image.fromarray(picture()).save(folders / "images" / "a.jpg")
    Image.fromarray(square()).convert("RGB").save(folders / "masks" / "a.jpg")
    arguments = ["dataset", str(folders / "images"), str(folders / "masks"), "-d", "12", "-n", "Skin"]
    assert cli.main(arguments) == 1
    assert "Masks are JPEG (1, such as" in capsys.readouterr().err
    assert cli.main([*arguments, "--threshold", "128", "--classes", "lesion"]) == 0
    printed = capsys.readouterr().out
    assert "pixels of at least 128 are lesion" in printed and "nnUNetv2_plan_and_preprocess -d 12 -c 2d" in printed
    assert (folders / "raw" / "Dataset012_Skin" / "labelsTr" / "a.png").is_file()


@pytest.mark.integrity
def test_dataset_that_nnunet_rejects_is_not_installed(folders, monkeypatch):
    Image.fromarray(picture()).save(folders / "images" / "a.png")
    Image.fromarray(square(1)).save(folders / "masks" / "a.png")

    def refused(*_, **__):
        print("Error: labels wrong")
        raise RuntimeError("Some images have errors")

    monkeypatch.setattr("nnunetv2.experiment_planning.verify_dataset_integrity.verify_dataset_integrity", refused)
    with pytest.raises(DataError, match="integrity check failed .*\nError: labels wrong"):
        make(folders)
    assert not any((folders / "raw").iterdir())


@pytest.mark.slow
@pytest.mark.integrity
def test_script_without_main_guard_makes_a_dataset(folders):
    Image.fromarray(picture()).save(folders / "images" / "a.png")
    Image.fromarray(square(1)).save(folders / "masks" / "a.png")
    script = folders / "script.py"
    script.write_text(
        "from nnunet_hrmedseg import make_dataset\nmake_dataset('images', 'masks', number=7, name='Test', raw='raw')\n"
    )
    subprocess.run([sys.executable, script], cwd=folders, check=True, timeout=300)
    assert (folders / "raw" / "Dataset007_Test" / "dataset.json").is_file()


@pytest.mark.integrity
def test_what_nnunet_prints_on_a_damaged_dataset_is_shown(folders, monkeypatch):
    Image.fromarray(picture()).save(folders / "images" / "a.png")
    Image.fromarray(square(1)).save(folders / "masks" / "a.png")
    write = write_pixels
    monkeypatch.setattr("nnunet_hrmedseg.datasets.make.write_pixels", lambda place, labels: write(place, labels * 5))
    with pytest.raises(DataError, match="(?s)integrity check failed .*Error: Unexpected labels found in file.*a.png"):
        make(folders)


def test_few_cases_and_names_that_differ_only_in_case_are_reported(folders):
    for case in ("a", "A", "b"):
        Image.fromarray(picture()).save(folders / "images" / f"{case}.png")
        Image.fromarray(square()).save(folders / "masks" / f"{case}.png")
    summary = make(folders, dry_run=True)
    assert any("less than one case for each" in warning for warning in summary.warnings)
    if len(summary.cases) == 3:  # a case-sensitive file system
        assert any(warning.startswith("A, a differ only in upper and lower case") for warning in summary.warnings)


def test_missing_decoder_is_reported(folders, monkeypatch):
    deep = np.zeros((*SHAPE, 3), np.uint16)
    imagecodecs = pytest.importorskip("imagecodecs")
    (folders / "images" / "a.png").write_bytes(imagecodecs.png_encode(deep))
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(SetupError, match="pip install imagecodecs"):
        read_image(folders / "images" / "a.png")
