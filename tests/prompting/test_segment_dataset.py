"""`hrmedseg segment --dataset`: masks as an nnU-Net raw dataset."""

import json
import re

import numpy as np
import pytest
import tifffile
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from PIL import Image

from nnunet_hrmedseg.prompting.prompts import Prompt
from tests.prompting.segment_runs import expected, prompts, read, segment
from tests.prompting.tiny_sams import picture


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
def test_dataset_is_written(networks, folder, tmp_path, capsys):
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


def test_gray_images_keep_their_bits(networks, folder, tmp_path):
    rows = ["c.tif,5,5,40,30,,", "d.png,5,5,40,30,,"]
    assert segment(networks, folder, "--prompts", prompts(folder, *rows), "--dataset", "Dataset007_Gray") == 0
    dataset = tmp_path / "raw" / "Dataset007_Gray"
    assert json.loads((dataset / "dataset.json").read_text())["channel_names"] == {"0": "gray"}
    gray = picture(40, 50)[..., 0]
    assert np.array_equal(read(dataset / "imagesTr" / "c_0000.png"), gray)
    assert np.array_equal(read(dataset / "imagesTr" / "d_0000.png"), gray.astype(np.uint16) * 100)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_gray_types_unknown_to_pillow_become_8_bits(networks, folder, tmp_path, dtype):
    gray = picture(40, 50)[..., 0]
    tifffile.imwrite(folder / "e.tif", gray.astype(dtype) / 100)
    rows = prompts(folder, "c.tif,5,5,40,30,,", "e.tif,5,5,40,30,,")
    assert segment(networks, folder, "--prompts", rows, "--dataset", "Dataset007_Gray") == 0
    dataset = tmp_path / "raw" / "Dataset007_Gray"
    assert json.loads((dataset / "dataset.json").read_text())["channel_names"] == {"0": "gray"}
    written = read(dataset / "imagesTr" / "e_0000.png")
    assert written.dtype == np.uint8 and np.corrcoef(written.ravel(), gray.ravel())[0, 1] > 0.99


def test_images_beyond_the_size_limit_of_pillow(networks, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # Pillow rejects more than twice as many pixels
    rows = prompts(folder, "c.tif,5,5,40,30,,", "d.png,5,5,40,30,,")
    assert segment(networks, folder, "--prompts", rows, "--dataset", "Dataset007_Gray") == 0
    monkeypatch.undo()
    gray = picture(40, 50)[..., 0].astype(np.uint16) * 100
    assert np.array_equal(read(tmp_path / "raw" / "Dataset007_Gray" / "imagesTr" / "d_0000.png"), gray)


def test_failed_dataset_leaves_no_files(networks, folder, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    rows = prompts(folder, "a.png,10,5,80,60,,", "c.tif,5,5,40,30,,")
    monkeypatch.setattr("nnunet_hrmedseg.prompting.segment.draw_overlay", stop)
    assert segment(networks, folder, "--prompts", rows, "--dataset", "Dataset123_Cells") == 130
    assert not list((tmp_path / "raw").iterdir())


def test_names_that_nnunet_takes_for_labels_are_rejected(networks, folder, tmp_path, capsys):
    (folder / "a.png").rename(folder / "a_seg.png")
    rows = prompts(folder, "a_seg.png,10,5,80,60,,", "c.tif,5,5,40,30,,")
    assert segment(networks, folder, "--prompts", rows, "--dataset", "Dataset123_Cells") == 1
    assert "must not end in _seg: a_seg.png" in capsys.readouterr().err
    assert not (tmp_path / "raw").exists()
    assert segment(networks, folder, "--prompts", rows, "-o", "masks") == 0


@pytest.mark.parametrize("entry", [{"bbox": [1, 1, 9, 9]}, {"class": "wall"}])
def test_image_with_unknown_keys_is_not_written_as_background(networks, folder, tmp_path, capsys, entry):
    (tmp_path / "p.json").write_text(json.dumps([{"image": "a.png", "box": [1, 1, 9, 9]}, {"image": "c.tif", **entry}]))
    assert segment(networks, folder, "--prompts", tmp_path / "p.json", "--dataset", "Dataset123_Cells") == 1
    assert f"entry 2 has neither a box nor points, but {next(iter(entry))}" in capsys.readouterr().err
    assert not (tmp_path / "raw").exists()


def test_spreadsheet_with_class_numbers_written_by_pandas(networks, folder, tmp_path, capsys):
    """Semicolons, capitals, names without endings and in another folder, numbers as 10.0."""
    table = "Image;X0;Y0;X1;Y1;Class\nimages\\a.png;10,0;5;80;60;10,0\nC:\\x\\c;5;5;40;30;2,0\n;;;;;\n"
    (tmp_path / "table.csv").write_text(table, encoding="utf-16")
    assert segment(networks, folder, "--prompts", tmp_path / "table.csv", "-o", "out") == 0
    captured = capsys.readouterr()
    assert (
        "2 masks in out: 0 background, 1 2, 2 10." in captured.out
        and "Boxes (x0,y0,x1,y1): 35 to 70 pixels" in captured.out
    )
    assert "taken instead" in captured.err and "c.tif for C:" in captured.err
    assert np.array_equal(read("out/a_mask.png"), 2 * expected(networks, folder / "a.png", [Prompt((10, 5, 80, 60))]))
    assert np.array_equal(read("out/c_mask.tif"), expected(networks, folder / "c.tif", [Prompt((5, 5, 40, 30))]))


@pytest.mark.parametrize(
    "name, message",
    [
        ("Cells", "'Cells' is not the name of a dataset"),
        ("Dataset1_Cells", "is not the name of a dataset"),
        ("Dataset012_Cells", "The number 12 is used by .*Dataset012_Other"),
    ],
)
def test_invalid_dataset_names_are_rejected(networks, folder, tmp_path, capsys, name, message):
    (tmp_path / "raw" / "Dataset012_Other").mkdir(parents=True)
    assert segment(networks, folder, "--prompts", prompts(folder, "a.png,1,1,9,9,,"), "--dataset", name) == 1
    assert re.search(message, capsys.readouterr().err)
    assert [file.name for file in (tmp_path / "raw").iterdir()] == ["Dataset012_Other"]
