"""COCO and labelme files as masks."""

import base64
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_hrmedseg.datasets.sources import find_source
from nnunet_hrmedseg.errors import DataError, PlanError

SHAPE = 10, 12
SQUARE = [[1, 2], [4, 2], [4, 6], [1, 6]]
ORIENTATION = 0x0112  # EXIF tag


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for case in "ab":
        Image.fromarray(np.zeros(SHAPE, np.uint8)).save(folder / f"{case}.png")
    return folder


def coco(tmp_path, annotations):
    file = tmp_path / "annotations.json"
    content = {
        "images": [{"id": 1, "file_name": "train/a.png"}, {"id": 2, "file_name": "gone.png"}],
        "categories": [{"id": 5, "name": "polyp"}, {"id": 9, "name": "tool"}],
        "annotations": annotations,
    }
    file.write_text(json.dumps(content))
    return file


def test_coco_polygons_and_run_lengths(images, tmp_path):
    runs = [60, 10, 50]  # column by column: column 6
    file = coco(
        tmp_path,
        [
            {"image_id": 1, "category_id": 5, "segmentation": [[1, 2, 4, 2, 4, 6, 1, 6]]},
            {"image_id": 1, "category_id": 9, "segmentation": {"counts": runs, "size": [10, 12]}},
            {"image_id": 1, "category_id": 5, "bbox": [0, 0, 3, 3]},
        ],
    )
    source = find_source(images, file)
    assert source.labels == {"background": 0, "polyp": 1, "tool": 2}
    expected = np.zeros(SHAPE, np.uint8)
    expected[2:7, 1:5], expected[:, 6] = 1, 2
    (case,) = source.cases
    np.testing.assert_array_equal(source.label_map(case, SHAPE), expected)
    notes = " ".join(source.notes)
    assert (
        "boxes without an outline were left out (1)" in notes
        and "b.png" in notes
        and "annotated images that are missing (1): gone.png" in notes
    )


def test_invalid_coco_files_are_rejected(images, tmp_path):
    compressed = coco(tmp_path, [{"image_id": 1, "category_id": 5, "segmentation": {"counts": "abc", "size": [1, 1]}}])
    with pytest.raises(DataError, match="compressed run-length masks"):
        find_source(images, compressed)
    with pytest.raises(DataError, match="is not a COCO file"):
        find_source(images, coco(tmp_path, [{"image_id": 77, "category_id": 5}]))
    short = coco(tmp_path, [{"image_id": 1, "category_id": 5, "segmentation": {"counts": [3, 4], "size": [10, 12]}}])
    source = find_source(images, short)
    with pytest.raises(DataError, match="a run-length mask has 7 pixels, but the image has 120"):
        source.label_map(source.cases[0], SHAPE)
    turned = coco(tmp_path, [{"image_id": 1, "category_id": 5, "segmentation": {"counts": [0, 120], "size": [12, 10]}}])
    source = find_source(images, turned)
    with pytest.raises(DataError, match="a run-length mask has 12 x 10 pixels, but the image has 10 x 12"):
        source.label_map(source.cases[0], SHAPE)


def test_labelme_shapes(images, tmp_path):
    folder = tmp_path / "labels"
    folder.mkdir()
    shapes = [
        {"label": "disc", "shape_type": "rectangle", "points": [[1, 1], [3, 4]]},
        {"label": "cup", "shape_type": "circle", "points": [[8, 5], [10, 5]]},
        {"label": "cup", "shape_type": "point", "points": [[0, 0]]},
    ]
    (folder / "a.json").write_text(json.dumps({"shapes": shapes, "imagePath": "..\\images\\a.png"}))
    (folder / "b.json").write_text(json.dumps({"shapes": [], "imagePath": "b.png"}))
    source = find_source(images, folder, classes=["disc", "cup"])
    label = source.label_map(source.cases[0], SHAPE)
    assert (label == 1).sum() == 12 and label[5, 8] == 2 and label[5, 10] == 2 and label[0, 0] == 0
    assert source.label_map(source.cases[1], SHAPE).max() == 0
    assert any("shapes of the type point, which have no area, were left out (1)" in note for note in source.notes)
    with pytest.raises(PlanError, match="has the classes cup, disc, but --classes names other"):
        find_source(images, folder, classes=["other"])


def expected_square(value=1):
    label = np.zeros(SHAPE, np.uint8)
    label[2:7, 1:5] = value
    return label


def coco_of_squares(tmp_path, *entries):
    """Each image has the same square; in the second image its class differs."""
    file = tmp_path / "annotations.json"
    content = {
        "images": [{"id": index, **entry} for index, entry in enumerate(entries)],
        "categories": [{"id": 0, "name": "first"}, {"id": 1, "name": "second"}],
        "annotations": [
            {"image_id": index, "category_id": index, "segmentation": [np.ravel(SQUARE).tolist()]}
            for index in range(len(entries))
        ],
    }
    file.write_text(json.dumps(content))
    return file


def image_file(file: Path, shape=SHAPE, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros(shape, np.uint8)).save(file, **options)


def label_maps(source):
    return {case.name: source.label_map(case, SHAPE) for case in source.cases}


def labelme(file: Path, shapes, **content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"shapes": shapes, **content}))


def square(label="first", **changes):
    return {"label": label, "shape_type": "polygon", "points": SQUARE, **changes}


def test_categories_of_equal_names_are_one_class(images, tmp_path):
    file = coco_of_squares(tmp_path, {"file_name": "a.png"}, {"file_name": "b.png"})
    content = json.loads(file.read_text())
    content["categories"] = [{"id": 0, "name": "polyp"}, {"id": 1, "name": "polyp"}, {"id": 2, "name": "unused"}]
    file.write_text(json.dumps(content))
    source = find_source(images, file)
    assert source.labels == {"background": 0, "polyp": 1}
    assert "2 categories have the name polyp and are one class" in source.notes
    np.testing.assert_array_equal(label_maps(source)["b"], expected_square(1))


def test_labelme_rectangle_of_four_points(images, tmp_path):
    labelme(tmp_path / "labels" / "a.json", [square(shape_type="rectangle")])
    np.testing.assert_array_equal(label_maps(find_source(images, tmp_path / "labels"))["a"], expected_square())


def test_folders_and_classes_in_decomposed_characters(tmp_path):
    decomposed, composed = "Ba\u0308r", "B\u00e4r"
    for folder in (decomposed, "night"):
        image_file(tmp_path / "images" / folder / "frame.png")
    labelme(tmp_path / "labels" / composed / "frame.json", [square(decomposed)])
    source = find_source(tmp_path / "images", tmp_path / "labels", classes=[composed])
    assert source.classes == [composed] and [case.name for case in source.cases] == [f"{composed}_frame"]
    np.testing.assert_array_equal(label_maps(source)[f"{composed}_frame"], expected_square())


def test_coco_images_of_equal_name_in_two_folders_keep_their_outlines(tmp_path):
    for folder in ("day", "night"):
        image_file(tmp_path / "images" / folder / "frame.png")
    file = coco_of_squares(tmp_path, {"file_name": "data\\day\\frame.png"}, {"file_name": "data/night/frame.png"})
    labels = label_maps(find_source(tmp_path / "images", file))
    np.testing.assert_array_equal(labels["day_frame"], expected_square(1))
    np.testing.assert_array_equal(labels["night_frame"], expected_square(2))


def test_ambiguous_coco_images_are_rejected(tmp_path):
    image_file(tmp_path / "images" / "day" / "frame.png")
    one_name_twice = coco_of_squares(tmp_path, {"file_name": "frame.png"}, {"file_name": "frame.png"})
    with pytest.raises(DataError, match="annotates 2 images that may be .*frame.png: give the images different"):
        find_source(tmp_path / "images", one_name_twice)
    image_file(tmp_path / "images" / "night" / "frame.png")
    with pytest.raises(DataError, match=r"frame.png in .* may be any of .*day.*night"):
        find_source(tmp_path / "images", coco_of_squares(tmp_path, {"file_name": "frame.png"}))


def test_one_of_two_images_of_equal_name_is_annotated(tmp_path):
    for folder in ("day", "night"):
        image_file(tmp_path / "images" / folder / "frame.png")
    source = find_source(tmp_path / "images", coco_of_squares(tmp_path, {"file_name": "day/frame.png"}))
    assert list(label_maps(source)) == ["day_frame"]
    assert any("because they have no annotation (1): frame.png" in note for note in source.notes)


def test_outlines_for_another_image_size_are_rejected(images, tmp_path):
    for width, height in ((24, 20), (10, 12)):
        file = coco_of_squares(tmp_path, {"file_name": "a.png", "width": width, "height": height})
        source = find_source(images, file)
        with pytest.raises(DataError, match=f"has 10 x 12 pixels, but .* annotates it at {height} x {width}"):
            label_maps(source)
    labelme(tmp_path / "labels" / "a.json", [square()], imageHeight=20, imageWidth=24)
    with pytest.raises(DataError, match="annotates it at 20 x 24"):
        label_maps(find_source(images, tmp_path / "labels"))


def test_outlines_on_the_stored_image_are_rotated_with_it(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image_file(tmp_path / "images" / "a.jpg", SHAPE[::-1], exif=exif)  # stored 12 x 10, displayed 10 x 12
    file = coco_of_squares(tmp_path, {"file_name": "a.jpg", "width": 10, "height": 12})
    expected = np.zeros(SHAPE[::-1], np.uint8)
    expected[2:7, 1:5] = 1
    (label,) = label_maps(find_source(tmp_path / "images", file)).values()
    np.testing.assert_array_equal(label, np.rot90(expected, -1))


def test_labelme_masks_and_background(images, tmp_path):
    stream = BytesIO()
    Image.fromarray(np.array([[1, 1, 0], [0, 1, 1]], bool)).save(stream, "PNG")
    mask = base64.b64encode(stream.getvalue()).decode()
    shapes = [
        square("second", shape_type="mask", mask=mask, points=[[4, 3], [6, 4]]),
        square("first", shape_type="mask", mask=mask, points=[[10, 9], [12, 10]]),  # beyond the edge of the image
        square("_background_", points=[[5, 4], [5, 4], [5, 4]]),
        square("__ignore__", points=[[0, 0], [1, 0], [0, 0]]),
        square("first", points=[[3, 3]]),
    ]
    labelme(tmp_path / "labels" / "a.json", shapes)
    source = find_source(images, tmp_path / "labels")
    assert source.labels == {"background": 0, "first": 1, "second": 2, "ignore": 3}
    expected = np.zeros(SHAPE, np.uint8)
    expected[3, 4:6], expected[4, 6], expected[9, 10:], expected[0, :2] = 2, 2, 1, 3
    np.testing.assert_array_equal(label_maps(source)["a"], expected)
    assert source.notes[0] == "outlines with fewer than three points were left out (1)"


def test_labelme_files_renamed_with_their_images(images, tmp_path):
    labelme(tmp_path / "labels" / "a.json", [square("first")], imagePath="b.png")
    labelme(tmp_path / "labels" / "b.json", [square("second")], imagePath="IMG_0001.png")
    labels = label_maps(find_source(images, tmp_path / "labels"))
    np.testing.assert_array_equal(labels["a"], expected_square(1))
    np.testing.assert_array_equal(labels["b"], expected_square(2))


def test_labelme_files_with_other_names_than_their_images(images, tmp_path):
    labelme(tmp_path / "labels" / "first_reader_1.json", [square()], imagePath="C:\\scans\\b.png")
    np.testing.assert_array_equal(label_maps(find_source(images, tmp_path / "labels"))["b"], expected_square())


def test_mask_files_beside_an_unrelated_json(images, tmp_path):
    for case in "ab":
        image_file(tmp_path / "masks" / f"{case}.png")
    Image.fromarray(expected_square(255)).save(tmp_path / "masks" / "a.png")
    (tmp_path / "masks" / "classes.json").write_text('{"polyp": 255}')
    np.testing.assert_array_equal(label_maps(find_source(images, tmp_path / "masks"))["a"], expected_square())


@pytest.mark.parametrize("options", [{"ignore": 255}, {"threshold": 3}, {"colors": {"first": (1, 2, 3)}}])
def test_options_of_masks_in_image_files_are_rejected(images, tmp_path, options):
    file = coco_of_squares(tmp_path, {"file_name": "a.png"})
    with pytest.raises(PlanError, match="has outlines, but --colors, --threshold and --ignore are for masks in image"):
        find_source(images, file, **options)
