import json
from pathlib import Path

import pytest

from nnunet_hrmedseg.cli.command import build_parser
from nnunet_hrmedseg.cli.compare import _selection
from nnunet_hrmedseg.errors import DataError, HRMedSegError, PlanError
from nnunet_hrmedseg.evaluation.comparison.inputs import (
    ComparisonInputs,
    TrainedModels,
    _images_by_case,
    load_inputs,
)
from nnunet_hrmedseg.nnunet_versions import nnunet_folders
from tests.evaluation.comparison.folders import DATASET, DESCRIPTION, write_dataset, write_model


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write empty files: predictions, truth and images of two cases, and the truth of a third."""
    monkeypatch.chdir(tmp_path)
    Path("dataset.json").write_text(json.dumps(DESCRIPTION))
    for folder, names in (("a", "xy"), ("lr=0.01", "xy"), ("truth", "xyz"), ("images", "xyz")):
        Path(folder).mkdir()
        for name in names:
            Path(folder, f"{name}.png").touch()
    return tmp_path


def given(*command: str, images: bool = True) -> ComparisonInputs:
    options = ["--truth", "truth", "-djfile", "dataset.json", *(["--images", "images"] if images else [])]
    return load_inputs(_selection(build_parser().parse_args(["compare", *options, *command])))


def test_unused_files_are_reported(folders: Path) -> None:
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
    assert [*found.models[0].predictions(["all"])] == ["x", "y"] and [*found.truth] == ["x", "y", "z"]


def test_folders_without_unused_files_need_no_note(folders: Path) -> None:
    Path("truth/z.png").unlink()
    Path("images/z.png").unlink()
    assert given("--predictions", "a", "b=a").notes == []


def test_existing_folder_takes_precedence_over_a_name(folders: Path) -> None:
    assert [model.name for model in given("--predictions", "lr=0.01", "b=lr=0.01", "c=a").models] == [
        "lr=0.01",
        "b",
        "c",
    ]
    with pytest.raises(DataError, match=r"--predictions lr=0.1: there is no folder 0.1 or lr=0.1\."):
        given("--predictions", "lr=0.1")


@pytest.mark.parametrize(
    ("command", "kind", "message"),
    [
        ("--predictions a --truth truht", DataError, "--truth truht: there is no such folder"),
        ("--predictions a --truth dataset.json", DataError, "--truth dataset.json: there is no such folder"),
        (
            "--predictions a --truth empty",
            DataError,
            r"--truth empty has no file that ends in .png. It contains nothing",
        ),
        ("--predictions a --images imges", DataError, "--images imges: there is no such folder"),
        ("--predictions a -f 0", PlanError, "-f: only for trained models .*, not for --predictions"),
        ("--predictions a -tr T --train --epochs 3", PlanError, "-tr, --train, --epochs: only for trained models"),
        ("-d 1", PlanError, "--truth, -djfile, --images: only for folders of predictions"),
    ],
)
def test_invalid_folders_and_options_are_rejected(
    folders: Path, command: str, kind: type[HRMedSegError], message: str
) -> None:
    Path("empty").mkdir()
    with pytest.raises(kind, match=message):
        given(*command.split())


def test_fold_that_holds_no_case_out_is_rejected_before_training() -> None:
    options = ["compare", "-d", "1", "--train", "-tr", "nnUNetTrainer", "--minutes", "60", "-f"]
    with pytest.raises(PlanError, match="-f all: .* holds no case out"):
        _selection(build_parser().parse_args([*options, "0", "all"]))


def test_training_options_require_train() -> None:
    with pytest.raises(PlanError, match="--minutes, --npz: only with --train"):
        _selection(build_parser().parse_args(["compare", "-d", "1", "--minutes", "3", "--npz"]))


@pytest.mark.parametrize(
    "command",
    ["--tolerance -1", "--tolerance nan", "--cost_images -1", "-np 0", "--epochs 0", "--minutes 0", "-f one"],
)
def test_invalid_numbers_are_rejected(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["compare", *command.split()])
    assert f"argument {command.split()[0]}: " in capsys.readouterr().err


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
def test_cases_are_found_from_the_names_of_images(
    tmp_path: Path, files: list[str], cases: list[str], images: dict[str, list[str]]
) -> None:
    for file in files:
        (tmp_path / f"{file}.png").touch()
    found = _images_by_case(tmp_path, ".png", cases)
    assert found == {case: [tmp_path / f"{file}.png" for file in of_case] for case, of_case in images.items()}


def test_labels_are_those_of_the_selected_models(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    stock, ours = (write_model(tmp_path, f"{name}__nnUNetPlans__2d", 0) for name in ("nnUNetTrainer", "nnUNetTrainerA"))
    (ours / "dataset.json").write_text(json.dumps({**DESCRIPTION, "labels": {"background": 0, "disc": 1}}))
    folders = {name: tmp_path / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    with nnunet_folders(**folders):
        found = load_inputs(TrainedModels(DATASET, trainers=["nnUNetTrainer"]))
        assert [*found.dataset_json["labels"]] == ["background", "disc", "square"] and not found.notes
        (note,) = load_inputs(TrainedModels(DATASET)).notes
    assert note.startswith(f"{stock.name} was trained with other labels than {ours.name}, whose classes are measured")
