"""`hrmedseg segment` from files to files."""

import csv
import json
from pathlib import PurePosixPath

import numpy as np
import pytest
import tifffile
from PIL import Image

from nnunet_hrmedseg.prompting.image_names import below
from nnunet_hrmedseg.prompting.prompts import Prompt
from tests.prompting.segment_runs import expected, prompts, read, segment, segment_alone
from tests.prompting.tiny_sams import picture


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)


# ---- one image -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [("sam.pth", "student.safetensors"), ("sam2", "student2.safetensors")])
def test_box_gives_mask_and_score(networks, image, tmp_path, capsys, files):
    sam, encoder = files
    assert segment(networks, image, "--box", "10,5,80,60", "-o", tmp_path / "out", sam=sam, encoder=encoder) == 0
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["cell_mask.png", "cell_overlay.jpg"]
    mask = read(tmp_path / "out" / "cell_mask.png")
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, expected(networks, image, [Prompt((10, 5, 80, 60))], sam, encoder))
    assert read(tmp_path / "out" / "cell_overlay.jpg").shape == (70, 90, 3)
    printed = capsys.readouterr().out
    assert "1 mask in" in printed and "0 background, 1 object" in printed and "Predicted IoU: " in printed


def test_box_outside_by_a_rounding_error_and_normalized_box(networks, image, capsys):
    assert segment(networks, image, "--box", "-0.2,0,90.000054,35", "-o", "rounded") == 0
    assert "Boxes (x0,y0,x1,y1): 90 pixels wide, 35 high." in capsys.readouterr().out
    assert segment(networks, image, "--box", "0,0,1,0.5", "--normalized", "-o", "parts") == 0
    mask = expected(networks, image, [Prompt((0, 0, 90, 35))])
    for folder in ("rounded", "parts"):
        assert np.array_equal(read(f"{folder}/cell_mask.png"), mask)


def test_points_refine_the_box_or_mark_one_object(networks, image, tmp_path):
    options = ["--point", "45,35,1", "--point", "2,2,0", "--no_overlay"]
    assert segment(networks, image, *options, "-o", "points") == 0
    assert segment(networks, image, "--box", "10,5,80,60", *options, "-o", "both") == 0
    points = ((45, 35, 1), (2, 2, 0))
    assert np.array_equal(read("points/cell_mask.png"), expected(networks, image, [Prompt(None, points)]))
    assert np.array_equal(read("both/cell_mask.png"), expected(networks, image, [Prompt((10, 5, 80, 60), points)]))
    assert [file.name for file in (tmp_path / "both").iterdir()] == ["cell_mask.png"]


def test_later_object_is_on_top_for_any_kind_of_prompt(networks, image):
    """Prompts of one form are decoded together, so the mask of the point is predicted last."""
    rows = ["cell.png,10,5,80,60,,", "cell.png,,,,,45 35 1,", "cell.png,0,0,60,50,,"]
    options = ["--prompts", prompts(image.parent / "x", *rows), "--instances"]
    assert segment(networks, image, *options, "-o", "out") == 0
    given = [Prompt((10, 5, 80, 60)), Prompt(None, ((45, 35, 1),)), Prompt((0, 0, 60, 50))]
    objects = expected(networks, image, given)
    assert set(np.unique(objects)) == {0, 1, 2, 3}
    assert np.array_equal(read("out/cell_mask.png"), objects)


def test_best_of_three_masks_for_a_single_point_or_on_request(networks, image):
    assert segment(networks, image, "--point", "45,35,1", "-o", "point") == 0
    assert segment(networks, image, "--box", "10,5,80,60", "-o", "box") == 0
    assert segment(networks, image, "--box", "10,5,80,60", "--multimask", "-o", "of_three") == 0
    point, box = Prompt(None, ((45, 35, 1),)), Prompt((10, 5, 80, 60))
    for name, prompt, multimask in (("point", point, True), ("box", box, False), ("of_three", box, True)):
        mask, other = (
            segment_alone(networks, image, prompt, multimask=choice)[0] for choice in (multimask, not multimask)
        )
        assert np.array_equal(read(f"{name}/cell_mask.png"), mask) and not np.array_equal(mask, other)


def test_several_boxes_give_one_mask(networks, image, tmp_path):
    boxes = ["--box", "10,5,80,60", "--box", "0,0,20,20"]
    assert segment(networks, image, *boxes, "-o", "classes") == 0
    assert segment(networks, image, *boxes, "-o", "objects", "--instances") == 0
    objects = read("objects/cell_mask.png")
    assert np.array_equal(objects, expected(networks, image, [Prompt((10, 5, 80, 60)), Prompt((0, 0, 20, 20))]))
    assert np.array_equal(read("classes/cell_mask.png"), objects > 0)


@pytest.mark.parametrize(
    "name, mask", [("i.tif", "i_mask.tif"), ("i.bmp", "i_mask.bmp"), ("i.jpg", "i_mask.png"), ("I.PNG", "I_mask.png")]
)
def test_mask_has_the_format_of_the_image_if_it_is_lossless(networks, tmp_path, name, mask):
    Image.fromarray(picture(30, 40)).save(tmp_path / name)
    assert segment(networks, tmp_path / name, "--box", "5,5,30,25", "--no_overlay") == 0
    assert read(tmp_path / "hrmedseg_masks" / mask).shape == (30, 40)


def test_rotated_image_is_segmented_as_displayed(networks, tmp_path):
    """Cameras write such files; prompts and mask refer to the image as displayed."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(30, 60)).save(tmp_path / "i.jpg", exif=exif)
    assert segment(networks, tmp_path / "i.jpg", "--box", "0,0,30,60") == 0
    assert read("hrmedseg_masks/i_mask.png").shape == (60, 30)


# ---- a folder --------------------------------------------------------------------------------------------------------


def test_folder_of_images_is_segmented(networks, folder, tmp_path, capsys):
    rows = ["a.png,10,5,80,60,,wall", "a.png,0,0,20,20,,nucleus", "sub/b.jpg,5,5,40,30,,nucleus", "c.tif,,,,,,"]
    assert segment(networks, folder, "--prompts", prompts(folder, *rows), "-o", "out") == 0
    captured = capsys.readouterr()
    assert "3 masks in out: 0 background, 1 nucleus, 2 wall." in captured.out and "Segmenting" in captured.err
    written = sorted(file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*.*"))
    assert written == [
        "a_mask.png", "a_overlay.jpg", "c_mask.tif", "c_overlay.jpg", "scores.csv",
        "sub/b_mask.png", "sub/b_overlay.jpg",
    ]  # fmt: skip
    objects = expected(networks, folder / "a.png", [Prompt((10, 5, 80, 60)), Prompt((0, 0, 20, 20))])
    assert np.array_equal(read("out/a_mask.png"), np.array([0, 2, 1])[objects])
    assert not read("out/c_mask.tif").any()
    scores = list(csv.DictReader(open(tmp_path / "out" / "scores.csv")))
    assert [(row["image"], row["object"], row["class"]) for row in scores] == [
        ("a.png", "1", "wall"), ("a.png", "2", "nucleus"), ("sub/b.jpg", "1", "nucleus"),
    ]  # fmt: skip
    masks = [segment_alone(networks, folder / "a.png", Prompt(box)) for box in ((10, 5, 80, 60), (0, 0, 20, 20))]
    masks.append(segment_alone(networks, folder / "sub" / "b.jpg", Prompt((5, 5, 40, 30))))
    assert [(row["score"], int(row["pixels"])) for row in scores] == [(f"{s:.3f}", mask.sum()) for mask, s in masks]


def test_names_that_differ_only_in_case_are_reported(networks, folder, capsys):
    (folder / "d.png").rename(folder / "C.png")
    rows = prompts(folder, "C.png,5,5,40,30,,", "c.tif,5,5,40,30,,", "a.png,5,5,40,30,,")
    assert segment(networks, folder, "--prompts", rows, "-o", "out") == 0
    assert "Note: C, c differ only in upper and lower case" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, windows, path",
    [
        ("a.png", False, "a.png"),
        ("sub/a.png", False, "sub/a.png"),
        ("sub\\a.png", True, "sub/a.png"),
        ("sub/a.png", True, "sub/a.png"),
        ("/a.png", False, None),
        ("../a.png", False, None),
        ("..\\a.png", True, None),
        ("sub\\..\\..\\a.png", True, None),
        ("C:\\x\\a.png", True, None),
        ("C:a.png", True, None),
        ("\\\\server\\share\\a.png", True, None),
        ("\\a.png", True, None),
    ],
)
def test_image_names_may_not_leave_the_folder(name, windows, path):
    assert below(name, windows) == (None if path is None else PurePosixPath(path))


def test_json_file_and_one_of_several_images(networks, folder, tmp_path):
    entries = [{"image": "a.png", "box": [10, 5, 80, 60]}, {"image": "other.png", "box": [0, 0, 9999, 1]}]
    (tmp_path / "p.json").write_text(json.dumps(entries))
    assert segment(networks, folder / "a.png", "--prompts", tmp_path / "p.json") == 0
    assert np.array_equal(
        read("hrmedseg_masks/a_mask.png"), expected(networks, folder / "a.png", [Prompt((10, 5, 80, 60))])
    )


def test_image_that_fails_to_decode_is_reported(networks, folder, tmp_path, capsys):
    """Its header is valid, so the error occurs when the pixels are read: the other images are segmented."""
    whole = (folder / "a.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    rows = ["broken.png,1,1,5,5,,", "c.tif,1,1,30,30,,"]
    assert segment(networks, folder, "--prompts", prompts(folder, *rows), "-o", "out") == 1
    captured = capsys.readouterr()
    assert "1 of 2 images could not be segmented: broken.png" in captured.err and "1 mask in out" in captured.out
    assert not list((tmp_path / "out").glob("broken*")) and (tmp_path / "out" / "c_mask.tif").exists()


def test_12_bit_colors_and_webp_give_the_masks_of_8_bit_images(networks, tmp_path):
    pixels = picture(70, 90)
    pixels.flat[:2] = 0, 255
    low, high = np.percentile(pixels, (0.5, 99.5))
    stretched = np.clip((pixels - low) * 255 / (high - low), 0, 255).round().astype(np.uint8)
    tifffile.imwrite(tmp_path / "i.tif", pixels.astype(np.uint16) * 16, photometric="rgb")
    Image.fromarray(stretched).save(tmp_path / "i.webp", lossless=True)
    Image.fromarray(stretched).save(tmp_path / "i.png")
    for name, folder in (("i.tif", "a"), ("i.webp", "b")):
        assert segment(networks, tmp_path / name, "--box", "10,5,80,60", "-o", folder) == 0
    mask, _ = segment_alone(networks, tmp_path / "i.png", Prompt((10, 5, 80, 60)))
    assert np.array_equal(read("a/i_mask.tif"), mask) and np.array_equal(read("b/i_mask.png"), mask)
