"""`make_dataset(instances=True)`: labels with borders, from files, values, colors and polygons of objects."""

import json

import numpy as np
import pytest
from PIL import Image

from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.datasets.make import make_dataset
from nnunet_hrmedseg.datasets.masks import read_mask
from nnunet_hrmedseg.datasets.objects import separate_objects
from nnunet_hrmedseg.errors import DataError, PlanError, SetupError
from nnunet_hrmedseg.io.dicom_seg import write_label_map
from nnunet_hrmedseg.io.instances import border_labels, separate_instances
from tests.io.dicom_files import save_dicom

SHAPE = 24, 32


def touching() -> np.ndarray:
    instances = np.zeros(SHAPE, np.uint16)
    instances[4:14, 4:12], instances[4:14, 12:20] = 300, 7
    return instances


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr("nnunet_hrmedseg.datasets.make._verify", lambda folder: None)
    for name in ("images", "masks", "raw"):
        (tmp_path / name).mkdir()
    Image.fromarray(np.full(SHAPE, 90, np.uint8)).save(tmp_path / "images" / "a.png")
    return tmp_path


def make(folders, masks="masks", **options):
    options = {"number": 7, "name": "Cells", "raw": folders / "raw", "show": lambda text: None, **options}
    return make_dataset(folders / "images", folders / masks, instances=True, **options)


def check(summary, name="object"):
    description = json.loads((summary.folder / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, name: 1, "border": 2}
    assert description["instances"] == {"core": 1, "border": 2}
    found = separate_instances(np.asarray(Image.open(summary.folder / "labelsTr" / "a.png")))
    assert found.max() == 2 and (found > 0).tolist() == (touching() > 0).tolist()
    assert len(set(found[4:14, 4:12].ravel())) == len(set(found[4:14, 12:20].ravel())) == 1


def test_label_map_of_16_bits(folders):
    Image.fromarray(touching()).save(folders / "masks" / "a.png")
    check(make(folders))


def test_one_color_per_object(folders):
    colors = np.zeros((*SHAPE, 3), np.uint8)
    colors[touching() == 300], colors[touching() == 7] = (200, 0, 10), (200, 10, 0)
    Image.fromarray(colors).save(folders / "masks" / "a.png")
    check(make(folders, classes=["nucleus"]), "nucleus")


def test_one_file_per_object(folders):
    for number in (300, 7):
        Image.fromarray(np.where(touching() == number, 255, 0).astype(np.uint8)).save(
            folders / "masks" / f"a_{number}.png"
        )
    check(make(folders))


def test_one_polygon_per_object(folders):
    boxes = [[4, 4, 11, 4, 11, 13, 4, 13], [12, 4, 19, 4, 19, 13, 12, 13]]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": SHAPE[0], "width": SHAPE[1]}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{"image_id": 1, "category_id": 1, "segmentation": [box]} for box in boxes],
    }
    (folders / "coco.json").write_text(json.dumps(content))
    check(make(folders, "coco.json"))


@pytest.mark.parametrize(
    "options", [{"threshold": 3}, {"ignore": 255}, {"classes": ["a", "b"]}, {"classes": ["border"]}]
)
def test_class_options_are_rejected(folders, options):
    Image.fromarray(touching()).save(folders / "masks" / "a.png")
    with pytest.raises(PlanError, match="--instances"):
        make(folders, **options)


def test_command_writes_numbered_objects(folders, capsys):
    Image.fromarray(touching()).save(folders / "masks" / "a.png")
    labels = make(folders).folder / "labelsTr"
    assert main(["objects", "-i", str(labels), "-o", str(folders / "objects")]) == 0
    assert "2 objects of 1 images" in capsys.readouterr().out
    objects = np.asarray(Image.open(folders / "objects" / "a.tif"))
    assert objects.dtype == np.uint16 and (objects > 0).tolist() == (touching() > 0).tolist() and objects.max() == 2


def test_invalid_label_maps_are_reported_and_the_rest_is_written(folders):
    Image.fromarray(np.full(SHAPE, 5, np.uint8)).save(folders / "masks" / "other.png")
    Image.fromarray(np.zeros(SHAPE, np.uint8)).save(folders / "masks" / "empty.png")
    with pytest.raises(DataError, match=r"1 of 2 label maps were left out:\n.*other.png"):
        separate_objects(folders / "masks", folders / "objects")
    assert not np.asarray(Image.open(folders / "objects" / "empty.tif")).any()


@pytest.mark.parametrize("output", ["masks", "masks/objects", "linked"])
def test_label_maps_are_not_replaced_by_their_objects(folders, output):
    file = folders / "masks" / "a.tif"
    Image.fromarray(np.zeros(SHAPE, np.uint8)).save(file)
    (folders / "linked").symlink_to(folders / "masks")
    before = file.read_bytes()
    with pytest.raises(SetupError, match="would replace label maps in .*masks.*another folder"):
        separate_objects(folders / "masks", folders / output)
    assert file.read_bytes() == before and len([*(folders / "masks").iterdir()]) == 1


def test_label_maps_of_one_name_are_reported(folders):
    (folders / "masks" / "more").mkdir()
    for name in ("a.png", "more/a.png"):
        Image.fromarray(np.zeros(SHAPE, np.uint8)).save(folders / "masks" / name)
    with pytest.raises(DataError, match=r"Several label maps in .*masks have the same name: a\."):
        separate_objects(folders / "masks", folders / "objects")
    assert not (folders / "objects").exists()


@pytest.mark.parametrize("names", [{1: "cell", 2: "border"}, None])
def test_objects_of_predictions_in_dicom(folders, names):
    pytest.importorskip("highdicom")
    labels = border_labels(touching())
    source = save_dicom(folders / "a.dcm", np.zeros(SHAPE, np.uint8), "DX")
    write_label_map(labels[None], folders / "masks" / "a.dcm", source, names)
    assert separate_objects(folders / "masks", folders / "objects").counts == {"a": 2}
    assert (read_mask(folders / "masks" / "a.dcm") == labels).all()


def test_border_in_a_large_image_is_as_thick_as_a_pixel_of_the_canvas(folders):
    shape = (24, 2050)
    instances = np.zeros(shape, np.uint16)
    instances[2:22, 100:120] = 1
    Image.fromarray(np.full(shape, 90, np.uint8)).save(folders / "images" / "a.png")
    Image.fromarray(instances).save(folders / "masks" / "a.png")
    labels = np.asarray(Image.open(make(folders).folder / "labelsTr" / "a.png"))
    assert (labels[2:22, 100:120] > 0).all() and (labels > 0).sum() == 400
    assert labels[12, 98:107].tolist() == [0, 0, 2, 2, 2, 1, 1, 1, 1]  # 2050 / 1024, rounded up
