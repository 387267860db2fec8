"""`convert_images`: new images in the format of a dataset."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.datasets.convert import convert_images
from nnunet_hrmedseg.errors import DataError, PlanError, SetupError
from nnunet_hrmedseg.nnunet_versions import nnunet_folders

NAME = "Dataset012_Lesions"
ORIENTATION = 274


@pytest.fixture
def nnunet(tmp_path):
    """Set nnU-Net's folders, with a description of the dataset in nnUNet_preprocessed alone."""
    folders = {name: tmp_path / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in (*folders.values(), tmp_path / "new"):
        folder.mkdir()
    describe(tmp_path)
    with nnunet_folders(**folders):
        yield tmp_path


def describe(root: Path, channels=("R", "G", "B"), ending=".png"):
    folder = root / "nnUNet_preprocessed" / NAME
    folder.mkdir(exist_ok=True)
    names = {str(index): channel for index, channel in enumerate(channels)}
    content = {"channel_names": names, "labels": {"background": 0, "lesion": 1}, "file_ending": ending}
    (folder / "dataset.json").write_text(json.dumps(content))


def photo(file: Path, size=(40, 24), color=(200, 90, 10), **options):
    pixels = np.zeros((*size[::-1], 3), np.uint8)
    pixels[: size[1] // 2] = color
    Image.fromarray(pixels).save(file, **options)


def test_jpeg_is_rotated_and_written_with_the_names_of_nnunet(nnunet):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    photo(nnunet / "new" / "IMG 1.JPG", exif=exif)
    photo(nnunet / "new" / "b.png")
    result = convert_images(nnunet / "new", nnunet / "out", dataset=12)
    assert sorted(file.name for file in result.folder.iterdir()) == ["IMG 1_0000.png", "b_0000.png"]
    turned = Image.open(nnunet / "out" / "IMG 1_0000.png")
    assert turned.size == (24, 40) and turned.mode == "RGB" and turned.getexif().get(ORIENTATION) is None
    assert (nnunet / "out" / "b_0000.png").read_bytes() == (nnunet / "new" / "b.png").read_bytes()
    assert set(result.cases) == {"IMG 1", "b"}


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_file_of_another_format_named_png_becomes_png(nnunet, kind):
    Image.fromarray(np.full((8, 8), 7, np.uint8)).convert("RGB").save(nnunet / "new" / "a.png", kind)
    convert_images(nnunet / "new", nnunet / "out", dataset=NAME)
    written = Image.open(nnunet / "out" / "a_0000.png")
    assert (written.format, written.mode) == ("PNG", "RGB")


def test_gray_photo_is_repeated_for_channels_of_colors(nnunet):
    describe(nnunet, channels=["rgb_to_0_1"] * 3)
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(nnunet / "new" / "a.jpg")
    convert_images(nnunet / "new", nnunet / "out", dataset=NAME)
    assert np.asarray(Image.open(nnunet / "out" / "a_0000.png")).shape == (8, 8, 3)


def test_gray_image_gets_the_channels_of_the_dataset(nnunet):
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(nnunet / "new" / "a.png")
    convert_images(nnunet / "new", nnunet / "out", dataset=NAME)
    assert np.asarray(Image.open(nnunet / "out" / "a_0000.png")).shape == (8, 8, 3)
    describe(nnunet, ["gray"])
    convert_images(nnunet / "out", nnunet / "gray", dataset=12)  # three equal channels
    assert np.asarray(Image.open(nnunet / "gray" / "a_0000.png")).tolist() == np.full((8, 8), 7).tolist()


def test_gray_image_does_not_stand_for_channels_that_are_not_colors(nnunet):
    describe(nnunet, ("actin", "nuclei", "membrane"))
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(nnunet / "new" / "a.png")
    with pytest.raises(DataError, match=r"a\.png is gray"):
        convert_images(nnunet / "new", nnunet / "out", dataset=12)


def test_images_that_do_not_fit_the_dataset_are_reported_together(nnunet):
    describe(nnunet, ["gray"])
    photo(nnunet / "new" / "color.jpg")
    (nnunet / "new" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(nnunet / "new" / "good.png")
    with pytest.raises(DataError, match=r"(?s)2 of 3 images cannot.*broken\.png.*color\.jpg has colors"):
        convert_images(nnunet / "new", nnunet / "out", dataset=12)
    assert not (nnunet / "out").exists()


def test_precision_that_the_format_does_not_hold_is_reported(nnunet):
    Image.fromarray(np.full((8, 8), 700, np.uint16)).save(nnunet / "new" / "a.png")
    with pytest.raises(DataError, match=r"a\.png has values of the type uint16"):
        convert_images(nnunet / "new", nnunet / "out", dataset=12)
    describe(nnunet, ["gray"])
    convert_images(nnunet / "new", nnunet / "out", dataset=12)
    assert np.asarray(Image.open(nnunet / "out" / "a_0000.png")).max() == 700


def test_names_that_only_training_excludes_are_converted(nnunet):
    photo(nnunet / "new" / "a_seg.jpg")
    convert_images(nnunet / "new", nnunet / "out", dataset=12)
    assert (nnunet / "out" / "a_seg_0000.png").is_file()


@pytest.mark.parametrize("channels, ending", [(("CT", "PET"), ".png"), (("T1",), ".nii.gz")])
def test_datasets_of_other_images_raise_an_error(nnunet, channels, ending):
    describe(nnunet, channels, ending)
    photo(nnunet / "new" / "a.jpg")
    with pytest.raises(PlanError):
        convert_images(nnunet / "new", nnunet / "out", dataset=12)


def test_dataset_with_a_file_per_channel_raises_an_error(nnunet):
    (nnunet / "nnUNet_raw" / NAME / "imagesTr").mkdir(parents=True)
    (nnunet / "nnUNet_raw" / NAME / "imagesTr" / "a_0001.png").touch()
    photo(nnunet / "new" / "a.jpg")
    with pytest.raises(PlanError, match="separate files"):
        convert_images(nnunet / "new", nnunet / "out", dataset=12)


def test_output_is_not_replaced_without_the_option_and_never_replaces_the_images(nnunet):
    photo(nnunet / "new" / "a.jpg")
    convert_images(nnunet / "new", nnunet / "new" / "png", dataset=12)
    with pytest.raises(SetupError, match="--overwrite"):
        convert_images(nnunet / "new", nnunet / "new" / "png", dataset=12)
    again = convert_images(nnunet / "new", nnunet / "new" / "png", dataset=12, overwrite=True)
    assert set(again.cases) == {"a"}
    for output in (nnunet / "new", nnunet):
        with pytest.raises(PlanError, match="would replace the input"):
            convert_images(nnunet / "new", output, dataset=12, overwrite=True)
    assert (nnunet / "new" / "a.jpg").is_file()


def test_folder_that_is_not_writable_is_reported_before_images_are_read(nnunet, monkeypatch):
    (nnunet / "new").mkdir(exist_ok=True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(SetupError, match=f"folder {nnunet}: permit it"):
        convert_images(nnunet / "new", nnunet / "png", dataset=12)


@pytest.mark.parametrize("place", ["results", "results/notes.txt"])
def test_other_files_are_never_replaced(nnunet, place):
    photo(nnunet / "new" / "a.jpg")
    (nnunet / "results").mkdir()
    (nnunet / "results" / "notes.txt").write_text("mine")
    with pytest.raises(SetupError, match=r"other files than converted images: notes\.txt"):
        convert_images(nnunet / "new", nnunet / place, dataset=12, overwrite=True)
    assert (nnunet / "results" / "notes.txt").read_text() == "mine"


def test_command(nnunet, capsys):
    photo(nnunet / "new" / "a.jpg")
    (nnunet / "new" / "notes.txt").touch()
    assert main(["convert", str(nnunet / "new"), "-d", "12", "-o", str(nnunet / "out")]) == 0
    printed = capsys.readouterr().out
    assert "Wrote 1 images to" in printed and "notes.txt" in printed
    assert main(["convert", str(nnunet / "new"), "-d", "13", "-o", str(nnunet / "other")]) == 1
    assert "-d 13" in capsys.readouterr().err
    assert main(["convert", str(nnunet / "nothing"), "-d", "12", "-o", str(nnunet / "other")]) == 1
    assert "There is no folder" in capsys.readouterr().err
