"""The demo's data set, picture and folder. Its commands are those of the end-to-end tests."""

import json

import numpy as np
import pytest
from skimage import io

from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.demo import run
from nnunet_hrmedseg.demo.dataset import build_dataset
from nnunet_hrmedseg.demo.picture import write_picture
from nnunet_hrmedseg.errors import HRMedSegError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return build_dataset(tmp_path_factory.mktemp("raw"))


def test_the_data_set_is_in_nnunets_format(dataset):
    description = json.loads((dataset / "dataset.json").read_text())
    assert description["numTraining"] == 24
    for suffix, count in (("Tr", 24), ("Ts", 8)):
        labels = sorted((dataset / f"labels{suffix}").iterdir())
        images = sorted((dataset / f"images{suffix}").iterdir())
        assert [f"{label.stem}_0000.png" for label in labels] == [image.name for image in images]
        assert len(labels) == count
        for image_file, label_file in zip(images, labels, strict=True):
            image, label = io.imread(image_file), io.imread(label_file)
            assert image.shape == (*label.shape, 3) and image.dtype == np.uint8
            assert set(np.unique(label)) == {0, 1}


def test_the_large_images_are_among_them(dataset):
    sizes = [io.imread(file).shape[:2] for file in (dataset / "imagesTr").iterdir()]
    assert max(map(max, sizes)) == 1388


def test_every_training_case_is_in_the_split_once(dataset):
    (split,) = json.loads((dataset / "splits_final.json").read_text())
    cases = sorted(file.stem for file in (dataset / "labelsTr").iterdir())
    assert sorted(split["train"] + split["val"]) == cases
    assert len(split["val"]) == 2


def test_the_picture_shows_each_case(dataset, tmp_path):
    rows = [
        (case, dataset / "imagesTs" / f"{case}_0000.png", *[dataset / "labelsTs" / f"{case}.png"] * 2)
        for case in ("new_01", "new_05")
    ]
    file = tmp_path / "picture.png"
    write_picture(rows, file)
    picture = io.imread(file)[..., :3] / 255
    assert picture.shape[0] > 300 and picture.shape[1] > 500
    # a third of the width each: image without overlay, green truth, orange prediction
    left, middle, right = np.array_split(picture, 3, axis=1)
    green = [(part[..., 1] > part[..., 0] + 0.2).mean() for part in (left, middle, right)]
    orange = [((part[..., 0] > part[..., 2] + 0.3) & (part[..., 1] > 0.2)).mean() for part in (left, middle, right)]
    assert green[1] > 0.01 > green[2] and orange[2] > 0.01 > orange[1]


def test_a_folder_of_somebody_elses_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert main(["demo", "-o", str(tmp_path), "--overwrite"]) == 1
    assert "is not a demo's folder" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_an_earlier_demo_is_kept_unless_told_otherwise(tmp_path):
    folder = run._own_folder(tmp_path / "demo", overwrite=False)
    (folder / "demo.png").write_text("")
    with pytest.raises(HRMedSegError, match="--overwrite"):
        run._own_folder(folder, overwrite=False)
    assert run._own_folder(folder, overwrite=True) == folder
    assert not (folder / "demo.png").exists()


def test_a_failing_command_ends_the_demo_in_words(tmp_path, capfd):
    environment = run._environment(tmp_path)
    with pytest.raises(HRMedSegError, match="nnUNetv2_evaluate_simple ended with status 2"):
        run._run(["nnUNetv2_evaluate_simple"], environment)
    assert "$ nnUNetv2_evaluate_simple" in capfd.readouterr().out


def test_a_missing_command_is_named(tmp_path):
    with pytest.raises(HRMedSegError, match="nnUNetv2_nothing is not installed"):
        run._run(["nnUNetv2_nothing"], run._environment(tmp_path))
