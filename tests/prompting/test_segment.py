"""`hrmedseg segment`, from files to files."""

import csv
import errno
import json
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import tifffile
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from PIL import Image

from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.prompting import mask_files
from nnunet_hrmedseg.prompting import segment as command
from nnunet_hrmedseg.prompting.image_names import below
from nnunet_hrmedseg.prompting.networks import load_promptable
from nnunet_hrmedseg.prompting.predictor import Predictor
from nnunet_hrmedseg.prompting.prompts import Prompt
from tests.prompting.tiny_sams import picture

HEADER = "image,x0,y0,x1,y1,points,class\n"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def image(tmp_path):
    Image.fromarray(picture(70, 90)).save(tmp_path / "cell.png")
    return tmp_path / "cell.png"


@pytest.fixture
def folder(tmp_path):
    """Two colour images, one of them in a folder, a grey one and one of 16 bits."""
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    Image.fromarray(picture(70, 90)).save(images / "a.png")
    Image.fromarray(picture(40, 50)).save(images / "sub" / "b.jpg")
    Image.fromarray(picture(40, 50)[..., 0]).save(images / "c.tif")
    Image.fromarray(picture(40, 50)[..., 0].astype(np.uint16) * 100).save(images / "d.png")
    return images


def segment(networks, image, *options, sam="sam.pth", encoder="student.safetensors"):
    network = ["--encoder", str(networks / encoder), "--sam", str(networks / sam), "-device", "cpu"]
    return main(["segment", str(image), *network, *map(str, options)])


def prompts(folder, *rows):
    (folder.parent / "prompts.csv").write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return folder.parent / "prompts.csv"


def read(file):
    return np.asarray(Image.open(file))


def alone(networks, image, prompt, sam="sam.pth", encoder="student.safetensors", **options):
    """Mask and score of one prompt, by the predictor itself."""
    predictor = Predictor(load_promptable(networks / encoder, networks / sam))
    predictor.set_image(Image.open(image))
    if prompt.box:
        options["boxes"] = prompt.box
    if prompt.points:
        options |= {"points": [point[:2] for point in prompt.points], "labels": [point[2] for point in prompt.points]}
    found = predictor.predict(**options)
    return found.masks[0], found.scores[0]


def expected(networks, image, given, *files):
    """Numbers of objects: every mask by itself, each over those before it."""
    numbers = np.zeros(read(image).shape[:2], int)
    for number, prompt in enumerate(given, start=1):
        mask, _ = alone(networks, image, prompt, *files)
        assert 0 < mask.sum() < mask.size
        numbers[mask] = number
    return numbers


# ---- one image -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [("sam.pth", "student.safetensors"), ("sam2", "student2.safetensors")])
def test_a_box(networks, image, tmp_path, capsys, files):
    sam, encoder = files
    assert segment(networks, image, "--box", "10,5,80,60", "-o", tmp_path / "out", sam=sam, encoder=encoder) == 0
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["cell_mask.png", "cell_overlay.jpg"]
    mask = read(tmp_path / "out" / "cell_mask.png")
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, expected(networks, image, [Prompt((10, 5, 80, 60))], sam, encoder))
    assert read(tmp_path / "out" / "cell_overlay.jpg").shape == (70, 90, 3)
    said = capsys.readouterr().out
    assert "1 mask in" in said and "0 background, 1 object" in said and "Predicted IoU: " in said


def test_a_box_outside_by_a_rounding_error_and_one_in_parts_of_the_image(networks, image, capsys):
    assert segment(networks, image, "--box", "-0.2,0,90.000054,35", "-o", "rounded") == 0
    assert "Boxes (x0,y0,x1,y1): 90 pixels wide, 35 high." in capsys.readouterr().out
    assert segment(networks, image, "--box", "0,0,1,0.5", "--normalized", "-o", "parts") == 0
    mask = expected(networks, image, [Prompt((0, 0, 90, 35))])
    for folder in ("rounded", "parts"):
        assert np.array_equal(read(f"{folder}/cell_mask.png"), mask)


def test_points_belong_to_the_box_or_to_one_object(networks, image, tmp_path):
    options = ["--point", "45,35,1", "--point", "2,2,0", "--no_overlay"]
    assert segment(networks, image, *options, "-o", "points") == 0
    assert segment(networks, image, "--box", "10,5,80,60", *options, "-o", "both") == 0
    points = ((45, 35, 1), (2, 2, 0))
    assert np.array_equal(read("points/cell_mask.png"), expected(networks, image, [Prompt(None, points)]))
    assert np.array_equal(read("both/cell_mask.png"), expected(networks, image, [Prompt((10, 5, 80, 60), points)]))
    assert [file.name for file in (tmp_path / "both").iterdir()] == ["cell_mask.png"]


def test_a_later_object_lies_on_top_whatever_its_prompt_is(networks, image):
    """Prompts of one form go through the decoder together, so the point's mask is the last to come."""
    rows = ["cell.png,10,5,80,60,,", "cell.png,,,,,45 35 1,", "cell.png,0,0,60,50,,"]
    options = ["--prompts", prompts(image.parent / "x", *rows), "--instances"]
    assert segment(networks, image, *options, "-o", "out") == 0
    given = [Prompt((10, 5, 80, 60)), Prompt(None, ((45, 35, 1),)), Prompt((0, 0, 60, 50))]
    objects = expected(networks, image, given)
    assert set(np.unique(objects)) == {0, 1, 2, 3}
    assert np.array_equal(read("out/cell_mask.png"), objects)


def test_the_best_of_three_masks_for_a_single_point_and_where_it_is_asked_for(networks, image):
    assert segment(networks, image, "--point", "45,35,1", "-o", "point") == 0
    assert segment(networks, image, "--box", "10,5,80,60", "-o", "box") == 0
    assert segment(networks, image, "--box", "10,5,80,60", "--multimask", "-o", "of_three") == 0
    point, box = Prompt(None, ((45, 35, 1),)), Prompt((10, 5, 80, 60))
    for name, prompt, multimask in (("point", point, True), ("box", box, False), ("of_three", box, True)):
        mask, other = (alone(networks, image, prompt, multimask=choice)[0] for choice in (multimask, not multimask))
        assert np.array_equal(read(f"{name}/cell_mask.png"), mask) and not np.array_equal(mask, other)


def test_several_boxes(networks, image, tmp_path):
    boxes = ["--box", "10,5,80,60", "--box", "0,0,20,20"]
    assert segment(networks, image, *boxes, "-o", "classes") == 0
    assert segment(networks, image, *boxes, "-o", "objects", "--instances") == 0
    objects = read("objects/cell_mask.png")
    assert np.array_equal(objects, expected(networks, image, [Prompt((10, 5, 80, 60)), Prompt((0, 0, 20, 20))]))
    assert np.array_equal(read("classes/cell_mask.png"), objects > 0)


@pytest.mark.parametrize(
    "name, mask", [("i.tif", "i_mask.tif"), ("i.bmp", "i_mask.bmp"), ("i.jpg", "i_mask.png"), ("I.PNG", "I_mask.png")]
)
def test_the_mask_is_in_the_images_format_where_that_loses_nothing(networks, tmp_path, name, mask):
    Image.fromarray(picture(30, 40)).save(tmp_path / name)
    assert segment(networks, tmp_path / name, "--box", "5,5,30,25", "--no_overlay") == 0
    assert read(tmp_path / "hrmedseg_masks" / mask).shape == (30, 40)


def test_an_image_on_its_side(networks, tmp_path):
    """Cameras write so; prompts and mask are in the image as it is seen."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(30, 60)).save(tmp_path / "i.jpg", exif=exif)
    assert segment(networks, tmp_path / "i.jpg", "--box", "0,0,30,60") == 0
    assert read("hrmedseg_masks/i_mask.png").shape == (60, 30)


# ---- a folder --------------------------------------------------------------------------------------------------------


def test_a_folder(networks, folder, tmp_path, capsys):
    rows = ["a.png,10,5,80,60,,wall", "a.png,0,0,20,20,,nucleus", "sub/b.jpg,5,5,40,30,,nucleus", "c.tif,,,,,,"]
    assert segment(networks, folder, "--prompts", prompts(folder, *rows), "-o", "out") == 0
    said = capsys.readouterr()
    assert "3 masks in out: 0 background, 1 nucleus, 2 wall." in said.out and "Segmenting" in said.err
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
    masks = [alone(networks, folder / "a.png", Prompt(box)) for box in ((10, 5, 80, 60), (0, 0, 20, 20))]
    masks.append(alone(networks, folder / "sub" / "b.jpg", Prompt((5, 5, 40, 30))))
    assert [(row["score"], int(row["pixels"])) for row in scores] == [(f"{s:.3f}", mask.sum()) for mask, s in masks]


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
def test_names_of_images_lead_below_their_folder_or_nowhere(name, windows, path):
    assert below(name, windows) == (None if path is None else PurePosixPath(path))


def test_json_and_one_image_of_many(networks, folder, tmp_path):
    entries = [{"image": "a.png", "box": [10, 5, 80, 60]}, {"image": "other.png", "box": [0, 0, 9999, 1]}]
    (tmp_path / "p.json").write_text(json.dumps(entries))
    assert segment(networks, folder / "a.png", "--prompts", tmp_path / "p.json") == 0
    assert np.array_equal(
        read("hrmedseg_masks/a_mask.png"), expected(networks, folder / "a.png", [Prompt((10, 5, 80, 60))])
    )


def test_an_image_that_breaks_on_the_way(networks, folder, tmp_path, capsys):
    """Its head is whole, so it is met when it is read: the others are done, and it is named."""
    whole = (folder / "a.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    rows = ["broken.png,1,1,5,5,,", "c.tif,1,1,30,30,,"]
    assert segment(networks, folder, "--prompts", prompts(folder, *rows), "-o", "out") == 1
    said = capsys.readouterr()
    assert "1 of 2 images could not be segmented: broken.png" in said.err and "1 mask in out" in said.out
    assert not list((tmp_path / "out").glob("broken*")) and (tmp_path / "out" / "c_mask.tif").exists()


def test_color_of_12_bits_and_webp_give_the_masks_of_their_8_bits(networks, tmp_path):
    pixels = picture(70, 90)
    pixels.flat[:2] = 0, 255
    low, high = np.percentile(pixels, (0.5, 99.5))
    stretched = np.clip((pixels - low) * 255 / (high - low), 0, 255).round().astype(np.uint8)
    tifffile.imwrite(tmp_path / "i.tif", pixels.astype(np.uint16) * 16, photometric="rgb")
    Image.fromarray(stretched).save(tmp_path / "i.webp", lossless=True)
    Image.fromarray(stretched).save(tmp_path / "i.png")
    for name, folder in (("i.tif", "a"), ("i.webp", "b")):
        assert segment(networks, tmp_path / name, "--box", "10,5,80,60", "-o", folder) == 0
    mask, _ = alone(networks, tmp_path / "i.png", Prompt((10, 5, 80, 60)))
    assert np.array_equal(read("a/i_mask.tif"), mask) and np.array_equal(read("b/i_mask.png"), mask)


# ---- a data set ------------------------------------------------------------------------------------------------------


def test_a_data_set(networks, folder, tmp_path, capsys):
    rows = ["a.png,10,5,80,60,,wall", "sub/b.jpg,5,5,40,30,,nucleus", "c.tif,,,,,,"]
    options = ["--prompts", prompts(folder, *rows), "--dataset", "Dataset123_Cells"]
    assert segment(networks, folder, *options) == 0
    dataset = tmp_path / "raw" / "Dataset123_Cells"
    assert [file.name for file in (tmp_path / "raw").iterdir()] == ["Dataset123_Cells"]
    described = json.loads((dataset / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "nucleus": 1, "wall": 2} and described["numTraining"] == 3
    assert described["channel_names"] == {"0": "R", "1": "G", "2": "B"}
    assert sorted(file.name for file in (dataset / "imagesTr").iterdir()) == [
        "a_0000.png", "c_0000.png", "sub_b_0000.png",
    ]  # fmt: skip
    assert np.array_equal(read(dataset / "imagesTr" / "a_0000.png"), picture(70, 90))
    objects = expected(networks, folder / "a.png", [Prompt((10, 5, 80, 60))])
    assert np.array_equal(read(dataset / "labelsTr" / "a.png"), 2 * objects)
    assert (dataset / "overlays" / "sub" / "b_overlay.jpg").exists() and (dataset / "scores.csv").exists()
    assert "nnUNetv2_plan_and_preprocess -d 123 -c 2d --verify_dataset_integrity" in capsys.readouterr().out
    verify_dataset_integrity(str(dataset), num_processes=1)


def test_grey_images_keep_their_bits(networks, folder, tmp_path):
    rows = ["c.tif,5,5,40,30,,", "d.png,5,5,40,30,,"]
    assert segment(networks, folder, "--prompts", prompts(folder, *rows), "--dataset", "Dataset007_Grey") == 0
    dataset = tmp_path / "raw" / "Dataset007_Grey"
    assert json.loads((dataset / "dataset.json").read_text())["channel_names"] == {"0": "gray"}
    grey = picture(40, 50)[..., 0]
    assert np.array_equal(read(dataset / "imagesTr" / "c_0000.png"), grey)
    assert np.array_equal(read(dataset / "imagesTr" / "d_0000.png"), grey.astype(np.uint16) * 100)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_grey_images_that_pillow_does_not_know_become_8_bits(networks, folder, tmp_path, dtype):
    grey = picture(40, 50)[..., 0]
    tifffile.imwrite(folder / "e.tif", grey.astype(dtype) / 100)
    rows = prompts(folder, "c.tif,5,5,40,30,,", "e.tif,5,5,40,30,,")
    assert segment(networks, folder, "--prompts", rows, "--dataset", "Dataset007_Grey") == 0
    dataset = tmp_path / "raw" / "Dataset007_Grey"
    assert json.loads((dataset / "dataset.json").read_text())["channel_names"] == {"0": "gray"}
    written = read(dataset / "imagesTr" / "e_0000.png")
    assert written.dtype == np.uint8 and np.corrcoef(written.ravel(), grey.ravel())[0, 1] > 0.99


def test_images_larger_than_pillow_likes(networks, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # it refuses more than twice as many
    rows = prompts(folder, "c.tif,5,5,40,30,,", "d.png,5,5,40,30,,")
    assert segment(networks, folder, "--prompts", rows, "--dataset", "Dataset007_Grey") == 0
    monkeypatch.undo()
    grey = picture(40, 50)[..., 0].astype(np.uint16) * 100
    assert np.array_equal(read(tmp_path / "raw" / "Dataset007_Grey" / "imagesTr" / "d_0000.png"), grey)


def test_nothing_stays_of_a_data_set_that_fails(networks, folder, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    rows = prompts(folder, "a.png,10,5,80,60,,", "c.tif,5,5,40,30,,")
    monkeypatch.setattr("nnunet_hrmedseg.prompting.segment.draw_overlay", stop)
    assert segment(networks, folder, "--prompts", rows, "--dataset", "Dataset123_Cells") == 130
    assert not list((tmp_path / "raw").iterdir())


@pytest.mark.parametrize("entry", [{"bbox": [1, 1, 9, 9]}, {"class": "wall"}])
def test_an_image_whose_prompts_are_not_read_is_not_background(networks, folder, tmp_path, capsys, entry):
    (tmp_path / "p.json").write_text(json.dumps([{"image": "a.png", "box": [1, 1, 9, 9]}, {"image": "c.tif", **entry}]))
    assert segment(networks, folder, "--prompts", tmp_path / "p.json", "--dataset", "Dataset123_Cells") == 1
    assert f"entry 2 has neither a box nor points, but {next(iter(entry))}" in capsys.readouterr().err
    assert not (tmp_path / "raw").exists()


def test_a_table_of_a_spreadsheet_and_the_classes_of_pandas(networks, folder, tmp_path, capsys):
    """Semicolons, capitals, names without endings and in another folder, numbers as 10.0."""
    table = "Image;X0;Y0;X1;Y1;Class\nimages\\a.png;10,0;5;80;60;10,0\nC:\\x\\c;5;5;40;30;2,0\n;;;;;\n"
    (tmp_path / "table.csv").write_text(table, encoding="utf-16")
    assert segment(networks, folder, "--prompts", tmp_path / "table.csv", "-o", "out") == 0
    said = capsys.readouterr()
    assert "2 masks in out: 0 background, 1 2, 2 10." in said.out and "Boxes (x0,y0,x1,y1): 35 to 70 pixels" in said.out
    assert "taken instead" in said.err and "c.tif for C:" in said.err
    assert np.array_equal(read("out/a_mask.png"), 2 * expected(networks, folder / "a.png", [Prompt((10, 5, 80, 60))]))
    assert np.array_equal(read("out/c_mask.tif"), expected(networks, folder / "c.tif", [Prompt((5, 5, 40, 30))]))


@pytest.mark.parametrize(
    "name, said",
    [
        ("Cells", "'Cells' is not the name of a dataset"),
        ("Dataset1_Cells", "is not the name of a dataset"),
        ("Dataset012_Cells", "The number 12 is taken by .*Dataset012_Other"),
    ],
)
def test_names_of_data_sets(networks, folder, tmp_path, capsys, name, said):
    (tmp_path / "raw" / "Dataset012_Other").mkdir(parents=True)
    assert segment(networks, folder, "--prompts", prompts(folder, "a.png,1,1,9,9,,"), "--dataset", name) == 1
    assert re.search(said, capsys.readouterr().err)
    assert [file.name for file in (tmp_path / "raw").iterdir()] == ["Dataset012_Other"]


# ---- mistakes: said in words, and nothing is written -----------------------------------------------------------------


@pytest.mark.parametrize(
    "options, said",
    [
        ([], "What is to be segmented"),
        (["--box", "0,0,91,70"], "cell.png: The box 0,0,91,70 reaches out of the image, which is 90 pixels wide"),
        (["--box", "50,5,20,60"], "empty or inverted"),
        (["--box", "-5,0,20,20"], "The box -5,0,20,20 reaches out of the image"),
        (["--box", "60,5,20,30"], "not width and height"),
        (["--box", "0.1,0.1,0.5,0.9"], "within the first pixel of the image. Add --normalized"),
        (["--box", "10,5,80,60", "--normalized"], "10,5,80,60 are not all between 0 and 1"),
        (["--point", "20,30,0", "--point", "5,5,0"], "All points .20,30; 5,5. have label 0"),
        (["--point", "95,5,1"], "outside of the image"),
        (["--box", "0,0,9,9", "--box", "0,0,8,8", "--point", "1,1,1"], "not clear to which one the points belong"),
        (["--box", "0,0,9,9", "--prompts", "p.csv"], "--box and --point are for one image"),
        (["--prompts", "nowhere.csv"], "The prompts nowhere.csv cannot be read"),
        (["--box", "0,0,9,9", "--encoder", "nowhere.safetensors"], "There is no encoder file nowhere.safetensors"),
        (["--box", "0,0,9,9", "--sam", "nowhere.pth"], "There is no SAM at nowhere.pth.*sam_vit_h_4b8939.pth"),
        (["--box", "0,0,9,9", "--dataset", "Dataset123_A", "--instances"], "--instances does not go with --dataset"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "_".join(value) or "none",
)
def test_mistakes(networks, image, tmp_path, capsys, options, said):
    before = sorted(tmp_path.iterdir())
    assert segment(networks, image, *options) == 1
    fault = capsys.readouterr().err
    assert fault.startswith("hrmedseg segment: ") and re.search(said, fault)
    assert sorted(tmp_path.iterdir()) == before


def test_neither_sam_nor_encoder(networks, image, capsys):
    assert main(["segment", str(image), "--box", "0,0,9,9"]) == 1
    assert "Give --sam the SAM that the encoder was distilled from" in capsys.readouterr().err
    assert main(["segment", str(image), "--box", "0,0,9,9", "--sam", str(networks / "sam.pth")]) == 1
    assert "Give --encoder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "rows, said",
    [
        (
            ["a.png,0,0,95,10,,"],
            "1 of 1 images or their prompts cannot be used: a.png: .*line 2: The box .* reaches out",
        ),
        (["a.png,1,1,9,9,,", "none.png,1,1,9,9,,"], "images that are not there: .*none.png"),
        (["../cell.png,1,1,9,9,,"], "must be the path of an image below"),
        (["a.nii.gz,1,1,9,9,,"], "a.nii.gz is no image of a kind that is read here.*save the slices"),
        (["text.png,1,1,9,9,,"], "text.png: it is no image"),
        (["stack.tif,1,1,9,9,,"], "stack.tif: it holds 3 pages of 50 x 40 pixels"),
        (["a.heic,1,1,9,9,,"], "a.heic is no image of a kind that is read here"),
        (["a.png,1,1,9,9,,background"], "cannot be called 'background'"),
        (["a.png,1,1,9,9,,", "a.tif,1,1,9,9,,"], "would have the same name: a"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value[-1],
)
def test_mistakes_in_a_folder(networks, folder, tmp_path, capsys, rows, said):
    (folder / "text.png").write_text("no image")
    tifffile.imwrite(folder / "stack.tif", np.zeros((3, 40, 50), np.uint8), photometric="minisblack")
    Image.fromarray(picture(40, 50)).save(folder / "a.tif")
    assert segment(networks, folder, "--prompts", prompts(folder, *rows), "-o", "out") == 1
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_data_set_of_nothing(networks, folder, tmp_path, capsys):
    assert segment(networks, folder, "--prompts", prompts(folder, "a.png,,,,,,"), "--dataset", "Dataset123_A") == 1
    assert "no object in any image" in capsys.readouterr().err and not (tmp_path / "raw").exists()


def test_a_folder_wants_a_file_of_prompts(networks, folder, capsys):
    assert segment(networks, folder) == 1
    assert "is a folder: give --prompts" in capsys.readouterr().err


def test_what_is_there_is_not_replaced_unasked(networks, image, tmp_path, capsys):
    assert segment(networks, image, "--box", "10,5,80,60", "-o", "out") == 0
    before = (tmp_path / "out" / "cell_mask.png").read_bytes()
    assert segment(networks, image, "--box", "0,0,20,20", "-o", "out") == 1
    assert "exist already" in capsys.readouterr().err
    assert (tmp_path / "out" / "cell_mask.png").read_bytes() == before
    assert segment(networks, image, "--box", "0,0,20,20", "-o", "out", "--overwrite") == 0


def test_images_without_prompts_are_named(networks, folder, tmp_path, capsys):
    rows = prompts(folder, "a.png,1,1,60,60,,", "sub/b.jpg,1,1,30,30,,")
    (folder / "prompts.csv").write_text(rows.read_text())
    (folder / "sub" / "._b.jpg").touch()
    assert segment(networks, folder, "--prompts", folder / "prompts.csv", "-o", "out", "--no_overlay") == 0
    said = capsys.readouterr().out
    assert f"Skipped in {folder}: c.tif, d.png.\nSkipped in {folder / 'sub'}: ._b.jpg.\n" in said


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("file", "file is a file; a folder is needed"),
        ("file/below", "below cannot be made: .*file is a file"),
        ("taken", "cell_mask.png: a file is to be written there, and it is a folder"),
    ],
)
def test_places_that_cannot_be_written_to_are_said_before_anything_is_loaded(
    image, tmp_path, capsys, monkeypatch, place, said
):
    monkeypatch.setattr(command, "load_promptable", lambda *_: pytest.fail("it was loaded"))
    (tmp_path / "file").write_text("kept")
    (tmp_path / "taken" / "cell_mask.png").mkdir(parents=True)
    options = ["--box", "10,5,80,60", "-o", tmp_path / place, "--overwrite"]
    assert segment(tmp_path, image, *options) == 1
    assert re.search(said, capsys.readouterr().err)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_of_an_image_can_be_in_the_way(folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").touch()
    rows = prompts(folder, "a.png,1,1,60,60,,", "sub/b.jpg,1,1,30,30,,")
    assert segment(tmp_path, folder, "--prompts", rows, "-o", "out") == 1
    assert "out/sub is a file; a folder is needed" in capsys.readouterr().err


def test_a_data_set_that_cannot_be_written_is_said_before_anything_is_loaded(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "load_promptable", lambda *_: pytest.fail("it was loaded"))
    (tmp_path / "raw").touch()
    rows = prompts(folder, "a.png,1,1,60,60,,cell")
    assert segment(tmp_path, folder, "--prompts", rows, "--dataset", "Dataset001_A") == 1
    assert "raw is a file; a folder is needed" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["-o", "out"], ["--dataset", "Dataset001_A"]])
def test_a_full_disk_is_said(networks, folder, tmp_path, capsys, monkeypatch, options):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mask_files, "write_atomically", full)
    monkeypatch.setattr(command.NewDataset, "add", full)
    rows = prompts(folder, "a.png,1,1,60,60,,cell")
    assert segment(networks, folder, "--prompts", rows, *options) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "could not be written ([Errno 28] No space left on device)" in said and "Make room" in said
    assert not list((tmp_path / "raw").glob("*"))


def test_an_input_is_never_replaced(networks, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.png", "a_mask.png"):
        Image.fromarray(picture(30, 40)).save(images / name)
    rows = prompts(images, "a.png,1,1,9,9,,", "a_mask.png,1,1,9,9,,")
    assert segment(networks, images, "--prompts", rows, "-o", images, "--overwrite") == 1
    assert "images to segment" in capsys.readouterr().err
    assert len(list(images.iterdir())) == 2


@pytest.mark.parametrize("command", ["segment", "zeroshot"])
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys\nfrom nnunet_hrmedseg.cli import main\n"
        f"try:\n    main(['{command}', '--help'])\nexcept SystemExit as done:\n    assert done.code == 0\n"
        "assert not {'torch', 'numpy', 'nnunetv2', 'timm', 'transformers'} & set(sys.modules)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--encoder" in done.stdout


@pytest.mark.parametrize("option", [["--box", "1,2,3"], ["--point", "a,b"], ["--prompts_at_once", "0"]])
def test_wrong_numbers(option, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["segment", "x.png", *option])
    assert stopped.value.code == 2 and option[0] in capsys.readouterr().err
