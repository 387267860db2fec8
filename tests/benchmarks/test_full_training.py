"""The runner of full-length trainings: splits, order of jobs, stops, damaged checkpoints, missing data, full disks."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import full_training, full_training_jobs, full_training_report
from benchmarks.full_training_jobs import RowError, Training
from benchmarks.full_training_rows import DATASETS, ROWS, Row, find_row, make_split

COMMIT = "0123456789abcdef"


@pytest.fixture
def data(tmp_path):
    """Write eight radiographs and eight frames with a published split, in the layout that the runner reads."""
    generator = np.random.default_rng(0)
    for name in ("cvc_clinicdb", "jsrt"):
        for part, high in (("images", 256), ("masks", 2)):
            folder = tmp_path / "data" / "labelled" / name / part
            folder.mkdir(parents=True)
            for index in range(8):
                pixels = generator.integers(0, high, (8, 8), np.uint8)
                Image.fromarray(pixels).save(folder / f"{index:03}.png")
    splits = tmp_path / "data" / "splits"
    splits.mkdir()
    lists = {"train": [f"{i:03}" for i in range(6)], "valid": ["006"], "test": ["007"]}
    (splits / "cvc_clinicdb.json").write_text(json.dumps(lists))
    return tmp_path / "data"


@pytest.fixture
def training(data, tmp_path):
    row = Row("a_row", "cvc_clinicdb", canvas=64, image_steps=8, batch_size=2)
    environment = full_training_jobs.environment_folder(tmp_path / "work", COMMIT)
    environment.mkdir(parents=True)
    (environment / "complete").touch()
    return Training(row, data, tmp_path / "work", COMMIT)


def test_rows_refer_to_existing_datasets_and_encoders():
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    for row in ROWS:
        assert row.dataset in DATASETS and [row.image_steps, row.processor_minutes, row.equal_seconds].count(None) == 2
        if row.equal_seconds:  # trained above it
            assert names.index(row.equal_seconds) < names.index(row.name)
    with pytest.raises(SystemExit, match="no row typo"):
        find_row("typo")


def test_encoders_were_not_trained_on_the_dataset_that_starts_from_them():
    polyps = {"cvc_clinicdb", "kvasir"}
    for row in ROWS:
        if row.start:
            seen = set(full_training_jobs.ENCODERS[row.start].datasets)
            assert row.dataset not in seen and not (row.dataset in polyps and seen & polyps), row.name


def test_published_split_and_trial_fold(data):
    split = make_split("cvc_clinicdb", data, [f"{i:03}" for i in range(8)])
    training, trial = split.folds()
    assert training == {"train": ["000", "001", "002", "003", "004", "005"], "val": ["006"]}
    assert trial == {"train": ["000", "001", "003", "004", "005"], "val": ["002"]}  # no case of val or test
    assert split.test == ["007"]


def test_drawn_split_is_deterministic(data):
    cases = [f"{i:03}" for i in range(124)]
    split = make_split("jsrt", data, cases)
    assert (len(split.train), len(split.val), split.test) == (99, 25, [])
    assert make_split("jsrt", data, cases) == split
    assert sorted([*split.train, *split.val]) == cases


def test_split_that_does_not_match_the_data_is_reported(data):
    with pytest.raises(SystemExit, match="names 1 cases that are missing: 007"):
        make_split("cvc_clinicdb", data, [f"{i:03}" for i in range(7)])
    (data / "splits" / "cvc_clinicdb.json").unlink()
    with pytest.raises(SystemExit, match=r"split .*cvc_clinicdb\.json is missing"):
        make_split("cvc_clinicdb", data, [])


def test_missing_data_and_masks_are_reported(data, tmp_path):
    with pytest.raises(RowError, match="the data is missing: .*kvasir"):
        full_training_jobs.write_raw(data, tmp_path / "work", "kvasir")
    (data / "labelled" / "jsrt" / "masks" / "003.png").unlink()
    with pytest.raises(RowError, match="no mask of 003"):
        full_training_jobs.write_raw(data, tmp_path / "work", "jsrt")
    assert not (tmp_path / "work" / "nnUNet_raw" / "Dataset943_jsrt" / "dataset.json").exists()


def test_raw_dataset_separates_test_cases(data, tmp_path):
    full_training_jobs.write_raw(data, tmp_path, "cvc_clinicdb")
    raw = tmp_path / "nnUNet_raw" / "Dataset941_cvc_clinicdb"
    assert sorted(file.name for file in (raw / "imagesTs").iterdir()) == ["007_0000.png"]
    assert len(list((raw / "imagesTr").iterdir())) == 7
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == 7
    assert Image.open(raw / "imagesTr" / "000_0000.png").mode == "RGB"


def test_settings_of_the_first_start_are_kept(training):
    first = training.settings()
    assert first["commit"] == COMMIT
    again = Training(training.row, training.data, training.work, "another commit")
    assert again.settings() == first


def test_row_with_missing_environment_is_not_continued_from_another_commit(training):
    training.settings()
    (full_training_jobs.environment_folder(training.work, COMMIT) / "complete").unlink()
    with pytest.raises(RowError, match="started from commit 0123456789ab, whose environment .* is missing"):
        training.work_on()


def test_full_disk_is_reported_before_the_training(training, monkeypatch):
    monkeypatch.setattr(full_training_jobs.shutil, "disk_usage", lambda path: SimpleNamespace(free=1.5e9))
    with pytest.raises(RowError, match="only 1.5 GB are free"):
        training.work_on()


@pytest.mark.slow
def test_damaged_checkpoint_is_replaced_by_the_previous_one(training, monkeypatch, capsys):
    python = full_training_jobs.environment_folder(training.work, COMMIT) / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(full_training_jobs.sys.executable)
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in full_training_jobs.sys.path if path))
    training.output.mkdir(parents=True)
    latest, previous = training.output / "checkpoint_latest.pth", training.output / "checkpoint_previous.pth"
    assert not training.usable_checkpoint()
    torch.save({"epoch": 3}, previous)
    latest.write_bytes(previous.read_bytes()[:100])
    assert training.usable_checkpoint()
    assert torch.load(latest)["epoch"] == 3
    assert "checkpoint_latest.pth is damaged" in capsys.readouterr().out
    assert latest.with_suffix(".damaged").is_file()


def test_failed_command_is_reported_with_its_last_lines(tmp_path):
    with pytest.raises(RowError, match="ended with status 3:\n  the reason"):
        full_training_jobs.call(["sh", "-c", "echo the reason >&2; exit 3"], {}, tmp_path / "log.txt")


def test_encoders_are_trained_before_the_rows_that_start_from_them(tmp_path):
    names = [job.name for job in full_training.list_jobs(tmp_path, tmp_path, None, COMMIT)]
    assert [name for name in names if not name.startswith("encoder")] == [row.name for row in ROWS]
    first = next(row.name for row in ROWS if row.start == "nuclei_skin_teeth")
    assert names.index("encoder nuclei_skin_teeth") == names.index(first) - 1
    assert len(set(names)) == len(names)


def test_lane_continues_after_a_failed_row_and_lists_unfinished_rows(capsys):
    def job(name, waits_for=None, error=None):
        def work_on():
            done.append(name)
            if error:
                raise error

        return SimpleNamespace(name=name, waits_for=lambda: waits_for, work_on=work_on)

    done: list[str] = []
    jobs = [job("first", error=RowError("no data")), job("second"), job("third", waits_for="encoder x")]
    full_training.lane(jobs, full_training.threading.Lock())
    assert done == ["first", "second"]
    printed = capsys.readouterr().out
    assert "first: NOT FINISHED: no data" in printed and "third: not started, as it waits for encoder x" in printed


def test_finished_result_is_not_replaced_by_an_unfinished_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(full_training, "RECORDED", tmp_path / "recorded")
    point = {"epoch": 1, "image_steps": 8, "processor_seconds": 1.0}
    results = {"finished": True, "row": {"commit": COMMIT}, "curve": [point]}
    monkeypatch.setattr(Training, "result", lambda self, finished: {**results, "finished": False, "curve": [point]})
    training = Training(ROWS[0], Path(), tmp_path / "work", COMMIT)
    training.settings()
    full_training.record(tmp_path / "work")
    file = tmp_path / "recorded" / f"{ROWS[0].name}.json"
    assert json.loads(file.read_text())["finished"] is False
    file.write_text(json.dumps(results))
    full_training.record(tmp_path / "work")
    assert json.loads(file.read_text())["finished"] is True
    assert "is kept" in capsys.readouterr().out


def test_rows_that_were_not_planned_yet_are_not_recorded(training, monkeypatch, tmp_path):
    monkeypatch.setattr(full_training, "RECORDED", tmp_path / "recorded")
    monkeypatch.setattr(full_training, "ROWS", [training.row])
    monkeypatch.setattr(full_training_jobs.subprocess, "run", lambda *args, **options: SimpleNamespace(stdout="{}"))
    training.settings()  # it was started
    full_training.record(training.work)
    assert training.result(finished=False)["patch_size"] is None
    assert not (tmp_path / "recorded").exists()


def test_report_draws_finished_and_running_rows(tmp_path):
    docs, recorded = tmp_path / "docs", tmp_path / "recorded"
    (docs / "benchmarks").mkdir(parents=True)
    recorded.mkdir()
    page, canvas_page = (docs / "benchmarks" / name for name in ("full_training.md", "canvas.md"))
    for file in (page, canvas_page):
        file.write_text(f"before\n{full_training_report.BEGIN}old{full_training_report.END}after\n")
    curve = [
        {"epoch": 1, "image_steps": 1000, "processor_seconds": 3600.0, "dice": {"1": 0.5}},
        {"epoch": 2, "image_steps": 2000, "processor_seconds": 7200.0, "dice": {"1": 0.7}},
    ]
    for name, finished in (("cvc_hrmedseg_random", True), ("cvc_stock", False)):
        row = find_row(name)
        settings = {"dataset": row.dataset, "fold": 0, "trainer": row.trainer, "canvas": row.canvas, "start": None}
        settings["image_steps"] = row.image_steps
        content = {"row": settings, "finished": finished, "curve": curve, "patch_size": [288, 384]}
        if finished:
            content["test_final"] = {"cases": {"a": {"1": 0.8}, "b": {"1": 0.9}}}
            content["test_averaged"] = {"cases": {"a": {"1": 0.9}, "b": {"1": 0.9}}}
        (recorded / f"{name}.json").write_text(json.dumps(content))
    row = find_row("canvas_mlua_dental_2d_fit")
    content = {
        "row": asdict(row) | {"settings": {}},
        "finished": True,
        "curve": [{"epoch": 5, "image_steps": 1200, "processor_seconds": 1800.0, "dice": {"1": 0.4}}],
        "patch_size": [704, 1440],
        "validation": {"cases": {"a": {"1": 0.25}, "b": {"1": 0.75}}},
    }
    (recorded / f"{row.name}.json").write_text(json.dumps(content))
    full_training_report.report(recorded, docs)
    fitted = "| caries, MLUA | `2d_fit` | 704 x 1440 | 1,200 | 30 | 0.500 [0.250, 0.750] | 0.25, 0.75 |"
    assert fitted in canvas_page.read_text()
    text = page.read_text()
    assert "2d_fit" not in text
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    dice = "0.850 [0.800, 0.900] | 0.900 [0.900, 0.900]"
    assert f"| HRMedSeg | 288 x 384 | random weights | 2,000 | 2.0 | {dice} |" in text
    assert "| stock nnU-Net | nnU-Net's plan | random weights | 2,000 so far | 2.0 | in training |  |" in text
    assert (docs / "images" / "full_training_cvc_clinicdb.png").stat().st_size > 1000


def test_curves_of_one_model_are_told_apart_by_their_length():
    rows = {
        name: {"row": {"trainer": find_row(name).trainer, "start": start, "image_steps": steps}}
        for name, start, steps in (
            ("cvc_hrmedseg_random", None, 49_000),
            ("cvc_hrmedseg_200_passes", None, 98_000),
            ("cvc_hrmedseg_encoder", "nuclei_skin_teeth", 49_000),
            ("cvc_stock", None, None),
        )
    }
    assert list(full_training_report.curve_names(rows).values()) == [
        "HRMedSeg, 49,000 image-steps",
        "HRMedSeg, 98,000 image-steps",
        "HRMedSeg, from nuclei_skin_teeth",
        "stock nnU-Net",
    ]


def test_status_into_a_closed_pipe_ends_quietly(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [
        sys.executable,
        str(Path(__file__).parents[2] / "benchmarks" / "full_training.py"),
        "status",
        str(tmp_path),
    ]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
