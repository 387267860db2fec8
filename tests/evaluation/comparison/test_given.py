import argparse
import json
from pathlib import Path

import pytest

from nnunet_hrmedseg.cli.compare import add_arguments as add_compare_arguments
from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.evaluation.comparison.given import ComparisonInputs, _images_by_case, load_inputs
from tests.evaluation.comparison.folders import DESCRIPTION


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Predictions, truth and images of two cases, as empty files, and the truth of a third."""
    monkeypatch.chdir(tmp_path)
    Path("dataset.json").write_text(json.dumps(DESCRIPTION))
    for folder, names in (("a", "xy"), ("lr=0.01", "xy"), ("truth", "xyz"), ("images", "xyz")):
        Path(folder).mkdir()
        for name in names:
            Path(folder, f"{name}.png").touch()
    return tmp_path


def given(*words: str, images: bool = True) -> ComparisonInputs:
    parser = argparse.ArgumentParser()
    add_compare_arguments(parser)
    options = ["--truth", "truth", "-djfile", "dataset.json", *(["--images", "images"] if images else [])]
    return load_inputs(parser.parse_args([*options, *words]))


def test_everything_in_the_folders_that_is_not_used_is_named(folders: Path) -> None:
    for name in (
        *("a/y.jpg", "a/summary.json", "a/x.npz", "a/x.pkl", "a/._x.png", "a/predict_from_raw_data_args.json"),
        *("truth/._x.png", "truth/y_old.nii.gz", "images/v_0000.png", "images/x.tif"),
    ):
        Path(name).touch()
    found = given("--predictions", "a", "--images", "images")
    assert found.notes == [
        "Skipped in truth: ._x.png, y_old.nii.gz.",
        "Skipped in a: ._x.png, y.jpg.",
        "Skipped in images: v_0000.png, x.tif.",
        "No model predicted z: these reference segmentations are left out.",
    ]
    assert [*found.models[0].of_folds(["all"])] == ["x", "y"] and [*found.truth] == ["x", "y", "z"]


def test_folders_that_are_used_whole_need_no_word(folders: Path) -> None:
    Path("truth/z.png").unlink()
    Path("images/z.png").unlink()
    assert given("--predictions", "a", "b=a").notes == []


def test_a_folder_that_exists_wins_over_a_name(folders: Path) -> None:
    assert [model.name for model in given("--predictions", "lr=0.01", "b=lr=0.01", "c=a").models] == [
        "lr=0.01",
        "b",
        "c",
    ]
    with pytest.raises(HRMedSegError, match=r"--predictions lr=0.1: there is no folder 0.1, nor lr=0.1\."):
        given("--predictions", "lr=0.1")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--predictions a --truth truht", "--truth truht: there is no such folder"),
        ("--predictions a --truth dataset.json", "--truth dataset.json: there is no such folder"),
        ("--predictions a --truth empty", r"--truth empty: no file ends in .png there \(there is nothing\)"),
        ("--predictions a --images imges", "--images imges: there is no such folder"),
        ("--predictions a -f 0", "-f: for trained models .* alone, not for --predictions"),
        ("--predictions a -tr T --train --epochs 3", "-tr, --train, --epochs: for trained models"),
        ("-d 1", "--truth, -djfile, --images: for folders of predictions alone"),
    ],
)
def test_folders_and_options_are_checked_first(folders: Path, words: str, said: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(HRMedSegError, match=said):
        given(*words.split())


def test_options_of_a_training_need_a_training() -> None:
    parser = argparse.ArgumentParser()
    add_compare_arguments(parser)
    with pytest.raises(HRMedSegError, match="--minutes, --npz: for --train alone"):
        load_inputs(parser.parse_args(["-d", "1", "--minutes", "3", "--npz"]))


@pytest.mark.parametrize(
    "words",
    ["--tolerance -1", "--tolerance nan", "--cost_images -1", "-np 0", "--epochs 0", "--minutes 0", "-f one"],
)
def test_numbers_that_cannot_be_are_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_compare_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(words.split())
    assert f"argument {words.split()[0]}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "cases", "images"),
    [
        (["a_0000", "a_0001", "b_0000"], "ab", {"a": ["a_0000", "a_0001"], "b": ["b_0000"]}),
        (["image", "a_12"], "ab", {"image": ["image"], "a_12": ["a_12"]}),
        (["img_0001", "img_0002"], ["img_0001", "img_0002"], {"img_0001": ["img_0001"], "img_0002": ["img_0002"]}),
        (["img_0001_0000", "img_0001_0001"], ["img_0001"], {"img_0001": ["img_0001_0000", "img_0001_0001"]}),
        (["1.2.840_0000", "1.2.841"], ["1.2.840", "1.2.841"], {"1.2.840": ["1.2.840_0000"], "1.2.841": ["1.2.841"]}),
    ],
)
def test_images_are_of_the_case_that_their_names_say(
    tmp_path: Path, files: list[str], cases: list[str], images: dict[str, list[str]]
) -> None:
    for file in files:
        (tmp_path / f"{file}.png").touch()
    found = _images_by_case(tmp_path, ".png", cases)
    assert found == {case: [tmp_path / f"{file}.png" for file in of_case] for case, of_case in images.items()}
