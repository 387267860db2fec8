"""The demo's dataset, picture, folder and last steps. The end-to-end tests run its other commands."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from skimage import io

from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.demo import picture, run
from nnunet_hrmedseg.demo.dataset import build_dataset
from nnunet_hrmedseg.demo.picture import write_picture
from nnunet_hrmedseg.errors import SetupError
from nnunet_hrmedseg.io import shell


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return build_dataset(tmp_path_factory.mktemp("raw"))


def test_dataset_is_in_nnunets_format(dataset):
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


def test_dataset_contains_the_large_images(dataset):
    sizes = [io.imread(file).shape[:2] for file in (dataset / "imagesTr").iterdir()]
    assert max(map(max, sizes)) == 1388


def test_every_training_case_is_in_the_split_once(dataset):
    (split,) = json.loads((dataset / "splits_final.json").read_text())
    cases = sorted(file.stem for file in (dataset / "labelsTr").iterdir())
    assert sorted(split["train"] + split["val"]) == cases
    assert len(split["val"]) == 2


def test_picture_shows_each_case(dataset, tmp_path):
    rows = [
        (case, dataset / "imagesTs" / f"{case}_0000.png", *[dataset / "labelsTs" / f"{case}.png"] * 2)
        for case in ("new_01", "new_05")
    ]
    file = tmp_path / "picture.png"
    write_picture(rows, file)
    written = io.imread(file)[..., :3] / 255
    assert written.shape[0] > 300 and written.shape[1] > 500
    # a third of the height each: image without overlay, green reference, orange prediction
    top, middle, bottom = np.array_split(written, 3, axis=0)
    green = [(part[..., 1] > part[..., 0] + 0.2).mean() for part in (top, middle, bottom)]
    orange = [((part[..., 0] > part[..., 2] + 0.3) & (part[..., 1] > 0.2)).mean() for part in (top, middle, bottom)]
    assert green[1] > 0.01 > green[2] and orange[2] > 0.01 > orange[1]


@pytest.mark.slow
def test_demo_with_perfect_predictions_has_a_dice_of_one(tmp_path, monkeypatch, capfd):
    """Planning, training and prediction are skipped, the reference replaces the predictions, and nnU-Net evaluates."""
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    run_command, commands = run._run, []

    def only_evaluate(command, environment):
        commands.append(command[0])
        if command[0] == "nnUNetv2_predict":
            images, predictions = (Path(command[command.index(option) + 1]) for option in ("-i", "-o"))
            shutil.copytree(images.parent / "labelsTs", predictions)
        if command[0].startswith("nnUNetv2_evaluate"):
            run_command(command, environment)

    monkeypatch.setattr(run, "_run", only_evaluate)
    assert main(["demo", "-o", str(tmp_path / "demo"), "-device", "cpu"]) == 0
    assert [name.split("_")[1] for name in commands] == ["plan", "train", "predict", "evaluate"]
    printed = capfd.readouterr().out
    dice = dict(re.findall(r"^  (\w+) +([0-9.]+)$", printed, re.MULTILINE))
    assert dice == {"mean": "1.000", **{f"new_{i:02d}": "1.000" for i in range(1, 9)}}
    assert io.imread(tmp_path / "demo" / "demo.png").shape[0] > 4 * 100


def test_dice_of_the_nuclei_is_read_from_the_summary(tmp_path):
    metrics = {"1": {"Dice": 0.75, "IoU": 0.6}}
    case = {"prediction_file": "predictions/new_01.png", "reference_file": "labelsTs/new_01.png", "metrics": metrics}
    (tmp_path / "summary.json").write_text(json.dumps({"metric_per_case": [case], "foreground_mean": {"Dice": 0.5}}))
    assert run._dice(tmp_path / "summary.json") == {"new_01": 0.75}


def test_picture_shows_one_image_of_each_size_from_best_to_worst(dataset, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(picture, "write_picture", lambda columns, file: shown.extend(columns))
    dice = {f"new_{number:02d}": number / 10 for number in range(1, 9)}
    run._write_picture(dataset, tmp_path, dice, tmp_path / "demo.png")
    titles, images, references, predictions = zip(*shown, strict=True)
    cases = [image.name.removesuffix("_0000.png") for image in images]
    assert cases == [f"new_{number:02d}" for number in (6, 5, 4, 3, 2, 1)]  # 7 and 8 have the size of 6
    for case, title, reference, prediction in zip(cases, titles, references, predictions, strict=True):
        assert title == f"Dice {dice[case]:.2f}"
        assert reference == dataset / "labelsTs" / f"{case}.png" and prediction == tmp_path / f"{case}.png"


@pytest.mark.parametrize(
    "platform, folder, setting, quoted",
    [
        ("linux", "/data/demo", "export nnUNet_raw=/data/demo", "/data/demo"),
        ("darwin", "/my data/demo", "export nnUNet_raw='/my data/demo'", "'/my data/demo'"),
        ("win32", r"C:\my data\demo", r"$env:nnUNet_raw = 'C:\my data\demo'", r'"C:\my data\demo"'),
        ("win32", r"C:\it's", r"$env:nnUNet_raw = 'C:\it''s'", r"C:\it's"),
    ],
)
def test_printed_commands_can_be_pasted_into_the_shell(monkeypatch, capsys, platform, folder, setting, quoted):
    monkeypatch.setattr(shell, "ON_WINDOWS", platform == "win32")
    assert shell.format_export("nnUNet_raw", folder) == setting
    with pytest.raises(SetupError):
        run._run(["nnUNetv2_nothing", "-i", folder], {})
    assert capsys.readouterr().out == f"\n$ nnUNetv2_nothing -i {quoted}\n"


def test_folder_with_other_files_is_rejected(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert main(["demo", "-o", str(tmp_path), "--overwrite"]) == 1
    assert "does not belong to a demo" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_earlier_demo_is_kept_without_overwrite(tmp_path):
    folder = run._own_folder(tmp_path / "demo", overwrite=False)
    (folder / "demo.png").write_text("")
    with pytest.raises(SetupError, match="--overwrite"):
        run._own_folder(folder, overwrite=False)
    assert run._own_folder(folder, overwrite=True) == folder
    assert not (folder / "demo.png").exists()


@pytest.mark.slow
def test_failing_command_ends_the_demo_with_an_error(tmp_path, capfd):
    environment = run._environment(tmp_path)
    with pytest.raises(SetupError, match="nnUNetv2_evaluate_simple failed with status 2"):
        run._run(["nnUNetv2_evaluate_simple"], environment)
    assert "$ nnUNetv2_evaluate_simple" in capfd.readouterr().out


def test_demo_does_not_run_with_fixed_folders_in_nnunet(tmp_path, monkeypatch):
    monkeypatch.setattr("nnunetv2.paths.nnUNet_preprocessed", "/data/preprocessed")
    with pytest.raises(SetupError, match="paths.py sets nnUNet_preprocessed to /data/preprocessed"):
        run._environment(tmp_path)


def test_missing_command_is_reported(tmp_path):
    with pytest.raises(SetupError, match="nnUNetv2_nothing is not installed"):
        run._run(["nnUNetv2_nothing"], run._environment(tmp_path))
