"""The command on a dataset with predictions written by the test: without checkpoints, so without costs."""

import csv
import errno
import json
import shutil
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, save_summary_json
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from PIL import Image

from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.evaluation.comparison import compare as module
from nnunet_hrmedseg.io.instances import border_labels
from tests.evaluation.comparison.folders import DATASET, DESCRIPTION, write_dataset, write_model

STOCK, OURS, THIRD = (
    f"{name}__nnUNetPlans__2d" for name in ("nnUNetTrainer", "nnUNetTrainerHRMedSeg", "nnUNetTrainerX")
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_dataset(tmp_path)
    write_model(tmp_path, STOCK, 3)
    write_model(tmp_path, OURS, 1)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "surface_measures_available", lambda: False)  # to save time; tested elsewhere
    return tmp_path


def run(*arguments: str, out: str = "out") -> tuple[dict[str, Any], Path]:
    assert main(["compare", "-np", "1", *arguments, "-o", out, "--cost_images", "0"]) == 0
    return json.loads(Path(out, "comparison.json").read_text()), Path(out)


def write_summary(validation: Path, labels: Path) -> dict[str, Any]:
    """Write nnU-Net's summary of a validation folder."""
    cases = [
        compute_metrics(str(labels / file.name), str(file), NaturalImage2DIO(), [1, 2])
        for file in sorted(validation.glob("*.png"))
    ]
    mean = {
        label: {m: np.nanmean([case["metrics"][label][m] for case in cases]) for m in ("Dice", "IoU")}
        for label in (1, 2)
    }
    summary = {
        "metric_per_case": cases,
        "mean": mean,
        "foreground_mean": {m: np.mean([mean[label][m] for label in (1, 2)]) for m in ("Dice", "IoU")},
    }
    for case in cases:
        case["metrics"] = {k: {m: float(v) for m, v in values.items()} for k, values in case["metrics"].items()}
    save_summary_json(summary, str(validation / "summary.json"))
    return summary


def test_command_writes_table_values_and_report(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, out = run("-d", "7")
    assert content["baseline"] == STOCK
    assert [model["title"] for model in content["models"]] == ["nnUNetTrainer", "nnUNetTrainerHRMedSeg"]
    assert content["cases"] == 6 and content["folds"] == ["0", "1"]
    tests = {(test["class"], test["measure"]): test for test in content["tests"]}
    assert tests["disc", "Dice"]["difference"]["mean"] > 0
    assert tests["disc", "Dice"]["effect"] == 1
    assert "nnUNetTrainer (baseline)" in capsys.readouterr().out
    with (out / "cases.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 6 * 2
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 9  # three cases, each with the truth and two models
    assert not list(out.glob("*.incomplete"))


@pytest.mark.slow
def test_several_processes_give_the_same_values(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # larger than the truth, so that mixing up the two would be detected
    file = root / "nnUNet_results" / DATASET / OURS / "fold_1" / "validation" / "case4.png"
    larger = np.array(Image.open(file))
    larger[:10] = 1
    Image.fromarray(larger).save(file)
    pools = []

    def pool(*arguments: Any, **options: Any) -> ProcessPoolExecutor:
        pools.append(arguments)
        return ProcessPoolExecutor(*arguments, **options)

    monkeypatch.setattr(module, "ProcessPoolExecutor", pool)
    monkeypatch.setattr(module, "_gallery", lambda *arguments: [])
    monkeypatch.setattr(module, "report", lambda *arguments: "")
    _, few = run("-d", "7", "-np", "2", out="few")
    monkeypatch.setattr(module, "FEW_JOBS", 0)
    _, alone = run("-d", "7", "-np", "1", out="alone")
    assert not pools
    _, together = run("-d", "7", "-np", "2", out="together")
    assert pools == [(2,)]
    assert (few / "cases.csv").read_text() == (alone / "cases.csv").read_text() == (together / "cases.csv").read_text()


def test_values_equal_those_of_nnunets_summary(root: Path) -> None:
    labels = root / "nnUNet_raw" / DATASET / "labelsTr"
    summary = write_summary(root / "nnUNet_results" / DATASET / OURS / "fold_0" / "validation", labels)
    content, _ = run("-d", DATASET, "-f", "0")
    ours = content["models"][1]["measures"]
    for measure in ("Dice", "IoU"):
        assert ours["mean"][measure]["mean"] == summary["foreground_mean"][measure]
        assert ours["disc"][measure]["mean"] == summary["mean"][1][measure]
    assert not [warning for warning in content["warnings"] if "summary.json" in warning]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have only names in Unicode")
def test_names_of_cases_need_not_be_utf_8(root: Path) -> None:
    for file in [*root.rglob("case1.png"), *root.rglob("case1_0000.png")]:
        file.rename(file.with_name(file.name.replace("case1", "case\udcfc")))
    content, out = run("-d", "7")
    assert content["cases"] == 6
    assert ",case\\udcfc,disc," in (out / "cases.csv").read_text()
    assert "case\\udcfc" in (out / "report.html").read_text()


def test_outdated_summary_is_reported(root: Path) -> None:
    validation = root / "nnUNet_results" / DATASET / OURS / "fold_0" / "validation"
    write_summary(validation, root / "nnUNet_raw" / DATASET / "labelsTr")
    shutil.copy(root / "nnUNet_raw" / DATASET / "labelsTr" / "case1.png", validation / "case1.png")
    content, _ = run("-d", "7")
    (warning,) = [warning for warning in content["warnings"] if "summary.json" in warning]
    assert "Dice of disc in case1.png, but the files give 1.0" in warning


@pytest.mark.slow
@pytest.mark.parametrize("old", ['{"results": {"all": [], "mean": {}}}', "[]", "{", ""])
def test_summary_of_an_older_nnunet_is_reported(root: Path, old: str) -> None:
    (root / "nnUNet_results" / DATASET / STOCK / "fold_1" / "validation" / "summary.json").write_text(old)
    content, _ = run("-d", "7")
    assert any("is from an older nnU-Net or damaged" in warning for warning in content["warnings"])


def test_model_without_a_fold_is_reported_and_the_rest_compared(root: Path) -> None:
    write_model(root, THIRD, 2, {0: [0, 1, 2]})
    content, _ = run("-d", "7")
    assert len(content["models"]) == 2
    assert any(f"{THIRD} is not compared" in warning for warning in content["warnings"])
    content, _ = run("-d", "7", "-f", "0")
    assert len(content["models"]) == 3 and not any(THIRD in warning for warning in content["warnings"])


def test_single_model_has_a_report(root: Path) -> None:
    content, _ = run("-d", "7", "-tr", "nnUNetTrainerHRMedSeg")
    assert len(content["models"]) == 1
    assert any("nothing to compare" in warning for warning in content["warnings"])


def test_unreadable_images_only_lose_their_picture(root: Path) -> None:
    for file in (root / "nnUNet_raw" / DATASET / "imagesTr").iterdir():
        file.write_bytes(b"no image")
    content, out = run("-d", "7")
    assert any("No picture of case" in warning and "case0_0000.png" in warning for warning in content["warnings"])
    assert "data:image" not in (out / "report.html").read_text()


def test_without_raw_images_there_are_no_pictures(root: Path) -> None:
    truth = root / "nnUNet_preprocessed" / DATASET / "gt_segmentations"
    shutil.copytree(root / "nnUNet_raw" / DATASET / "labelsTr", truth)
    shutil.rmtree(root / "nnUNet_raw" / DATASET)
    content, _ = run("-d", DATASET)
    assert any("There are no pictures" in warning for warning in content["warnings"])


def test_measures_missing_without_monai_are_reported(root: Path) -> None:
    content, out = run("-d", "7")
    assert any("nnunet_hrmedseg[compare]" in warning for warning in content["warnings"])
    assert "<th>HD95" not in (out / "report.html").read_text()


def test_reason_is_given_for_a_model_without_cost(root: Path) -> None:
    content, _ = run("-d", "7")
    assert "checkpoint" in content["models"][0]["cost"]


def given_folders(root: Path, images: Path) -> list[str]:
    """Return the command line for the predictions of a fold as arbitrary folders."""
    results, raw = root / "nnUNet_results" / DATASET, root / "nnUNet_raw" / DATASET
    folders = [f"{name}={results / model / 'fold_0' / 'validation'}" for name, model in (("a", STOCK), ("b", OURS))]
    truth = ["--truth", str(raw / "labelsTr"), "-djfile", str(raw / "dataset.json")]
    return ["--predictions", *folders, *truth, "--images", str(images), "--baseline", "a"]


def test_folders_of_predictions_are_compared(root: Path) -> None:
    content, out = run(*given_folders(root, root / "nnUNet_raw" / DATASET / "imagesTr"))
    assert content["dataset"] == DATASET and content["cases"] == 3
    assert [model["name"] for model in content["models"]] == ["a", "b"]
    assert "data:image" in (out / "report.html").read_text()


def test_images_without_a_channel_number_are_shown(root: Path) -> None:
    images = root / "nnUNet_raw" / DATASET / "imagesTr"
    for file in list(images.iterdir()):
        file.rename(file.with_name(file.name.replace("_0000", "")))
    content, out = run(*given_folders(root, images))
    assert not [warning for warning in content["warnings"] if "icture" in warning]
    assert (out / "report.html").read_text().count("data:image") == 3 * 3


def test_case_without_an_image_only_loses_its_picture(root: Path) -> None:
    images = root / "nnUNet_raw" / DATASET / "imagesTr"
    (images / "case1_0000.png").unlink()
    content, out = run(*given_folders(root, images))
    (warning,) = [warning for warning in content["warnings"] if "icture" in warning]
    assert warning == f"No picture of case1: there is no image of case1 in --images {images}."
    assert (out / "report.html").read_text().count("data:image") == 2 * 3
    content, _ = run("-d", "7", "-f", "0")
    (warning,) = [warning for warning in content["warnings"] if "icture" in warning]
    assert f"there is no image of case1 in nnUNet_raw/{DATASET}" in warning


def test_file_as_output_is_rejected_before_measuring(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_measure", lambda *arguments: pytest.fail("measured"))
    (root / "out").touch()
    assert main(["compare", "-d", "7", "-o", "out"]) == 1
    assert "out is a file; a folder is needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "-d DATASET, or --predictions"),
        (["-d", "99"], "-d 99"),
        (["-d", "7", "-tr", "nobody"], "No trained model of Dataset007_shapes with a validated fold"),
        (["-d", "7", "-f", "3"], "has the validated folds 0, 1, but not 3"),
        (["-d", "7", "--baseline", "swin"], "matches no model"),
        (["--predictions", "a=."], "--predictions also needs --truth and -djfile"),
        (["--predictions", "a=.", "--truth", ".", "-djfile", "none.json"], "dataset.json of nnU-Net"),
    ],
)
def test_wrong_arguments_are_reported(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["compare", *arguments, "-o", "out"]) == 1
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_two_folders_of_equal_name_are_rejected(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = root / "nnUNet_raw" / DATASET
    for name in ("a", "b"):
        (root / name / "same").mkdir(parents=True)
        Image.new("L", (4, 4)).save(root / name / "same" / "case0.png")
    given = ["--truth", str(raw / "labelsTr"), "-djfile", str(raw / "dataset.json")]
    assert main(["compare", "--predictions", "a/same", "b/same", *given]) == 1
    assert "two folders have the name same" in capsys.readouterr().err


def test_missing_nnunet_results_is_reported(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("nnUNet_results")
    assert main(["compare", "-d", "7"]) == 1
    assert "nnUNet_results is not set" in capsys.readouterr().err


def test_file_as_output_is_rejected_before_training(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "nnunet_hrmedseg.evaluation.comparison.compare.train_missing", lambda *_: pytest.fail("trained")
    )
    (root / "out").touch()
    assert main(["compare", "-d", "7", "--train", "-tr", "nnUNetTrainer", "--epochs", "1", "-o", "out"]) == 1
    assert "out is a file; a folder is needed" in capsys.readouterr().err


def test_full_disk_keeps_the_last_report(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_gallery", lambda *arguments: [])
    monkeypatch.setattr(module, "report", lambda *arguments: "a long page")
    _, out = run("-d", "7")
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    write_bytes = Path.write_bytes

    def full(file: Path, content: bytes) -> int:
        if file.name.startswith("report.html"):
            write_bytes(file, content[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(file, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(["compare", "-d", "7", "-f", "0", "-o", "out", "--cost_images", "0"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "out could not be written ([Errno 28] No space left on device); what was there before is untouched" in error
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_workers_end_when_the_command_is_interrupted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remaining cases are not measured first, unlike at the exit of a pool's context."""
    pools = []

    class Pool:
        def __init__(self, *_: Any, **__: Any) -> None:
            self._processes = {1: SimpleNamespace(terminate=lambda: pools.append("ended"))}

        def map(self, *_: Any, **__: Any) -> Iterator[Any]:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            return self.results()

        def results(self) -> Iterator[Any]:
            raise KeyboardInterrupt
            yield

        def shutdown(self, **options: Any) -> None:
            pools.append(options)

    monkeypatch.setattr(module, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(module, "FEW_JOBS", 0)
    assert main(["compare", "-d", "7", "-np", "2", "-o", "out"]) == 130
    assert pools == ["ended", {"wait": True, "cancel_futures": True}]


@pytest.mark.parametrize("mps, device", [(True, "mps"), (False, "cpu")])
def test_device_is_the_first_available_of_cuda_mps_cpu(
    root: Path, monkeypatch: pytest.MonkeyPatch, mps: bool, device: str
) -> None:
    devices = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)
    monkeypatch.setattr(module, "_costs", lambda *arguments: devices.append(arguments[-1].type) or {})
    monkeypatch.setattr(module, "_gallery", lambda *arguments: [])
    monkeypatch.setattr(module, "report", lambda *arguments: "")
    run("-d", "7")
    assert devices == [device]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_unavailable_device_is_rejected_first(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "-d", "99", "-device", "cuda"]) == 1
    assert "finds no cuda device here" in capsys.readouterr().err


def test_missing_template_engine_is_reported_before_measuring(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_measure", lambda *arguments: pytest.fail("measured"))
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["compare", "-d", "7", "-o", "out"]) == 1
    assert "pip install 'nnunet_hrmedseg[compare]'" in capsys.readouterr().err
    assert not Path("out").exists()


def test_objects_of_a_dataset_with_border_labels_are_compared(root: Path) -> None:
    description = {**DESCRIPTION, "labels": {"background": 0, "cell": 1, "border": 2}}
    description["instances"] = {"core": 1, "border": 2}
    cells = np.zeros((6, 40, 40), np.int32)
    for case in range(6):
        cells[case, 4:16, 4:14], cells[case, 4:16, 14 : 24 + case] = 1, 2
    for folder, shift in (("truth", 0), ("a", 1), ("b", 4)):
        Path(folder).mkdir()
        for case, objects in enumerate(cells):
            labels = border_labels(np.roll(objects, shift, axis=1))
            Image.fromarray(labels).save(Path(folder, f"{case}.png"))
    Path("dataset.json").write_text(json.dumps(description))
    content, out = run("--predictions", "a", "b", "--truth", "truth", "-djfile", "dataset.json")
    a, b = (model["measures"] for model in content["models"])
    assert a["cell"]["PQ"]["mean"] > b["cell"]["PQ"]["mean"] and a["cell"]["F1"]["mean"] == 1
    assert a["border"]["PQ"]["mean"] is None and a["mean"]["PQ"] == a["cell"]["PQ"]
    assert "panoptic quality" in (out / "report.html").read_text()
