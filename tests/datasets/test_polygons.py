"""COCO and labelme files as masks."""

import json

import numpy as np
import pytest
from PIL import Image

from nnunet_hrmedseg.datasets.sources import find_source
from nnunet_hrmedseg.errors import HRMedSegError

SHAPE = 10, 12


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


def test_coco_polygons_and_runs(images, tmp_path):
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
        "1 annotations are boxes" in notes and "b.png" in notes and "1 annotated images are missing: gone.png" in notes
    )


def test_coco_files_that_cannot_be_used(images, tmp_path):
    compressed = coco(tmp_path, [{"image_id": 1, "category_id": 5, "segmentation": {"counts": "abc", "size": [1, 1]}}])
    with pytest.raises(HRMedSegError, match="compressed run-length masks"):
        find_source(images, compressed)
    with pytest.raises(HRMedSegError, match="is not a COCO file"):
        find_source(images, coco(tmp_path, [{"image_id": 77, "category_id": 5}]))
    short = coco(tmp_path, [{"image_id": 1, "category_id": 5, "segmentation": {"counts": [3, 4], "size": [1, 7]}}])
    source = find_source(images, short)
    with pytest.raises(HRMedSegError, match="a run-length mask is of 7 pixels, the image of 120"):
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
    assert any("1 shapes of the type point" in note for note in source.notes)
    with pytest.raises(HRMedSegError, match="has the classes cup, disc; --classes names other"):
        find_source(images, folder, classes=["other"])
