import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import encoder_initialization_table as table
from benchmarks.encoder_initialization import encoder_folder
from benchmarks.encoder_initialization_data import ENCODERS, TASKS
from benchmarks.encoder_initialization_teacher import Teacher


def write_run(work: Path, task: str, start: str, seed: int, canvas: int, dice: np.ndarray, precision="float32") -> None:
    """Write a run with `dice` as (cases, classes)."""
    cases = {f"{i:02d}.png": {str(j + 1): value for j, value in enumerate(row)} for i, row in enumerate(dice.tolist())}
    run = {"task": task, "start": start, "seed": seed, "canvas": canvas, "dice": float(dice.mean())}
    run |= {"dice_per_case": cases, "encoder": {"file": "none"}, "precision": precision}
    (work / "runs").mkdir(exist_ok=True)
    suffix = "" if precision == "float32" else f"_{precision}"
    (work / "runs" / f"{task}_{start}_{seed}_{canvas}{suffix}.json").write_text(json.dumps(run))


def test_gains_have_intervals_at_each_canvas(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(table, "RESAMPLES", 500)
    random = np.random.default_rng(0)
    for canvas, gain in ((512, 0.05), (1024, 0.0)):
        for task in TASKS:
            for seed in (0, 1):
                scratch = random.uniform(0.5, 0.8, (20, 2))
                write_run(tmp_path, task, "scratch", seed, canvas, scratch)
                started = scratch + gain + random.normal(0, 0.02, scratch.shape)
                write_run(tmp_path, task, "distilled_large", seed, canvas, started)
    gains = table.table(tmp_path)["gain_in_dice_points"]
    for task in (*TASKS, "mean"):
        for canvas, expected in (("512", 5), ("1024", 0)):
            found = gains[canvas]["distilled_large"][task]
            low, high = found["interval"]
            assert low < found["gain"] < high and low - 1 < expected < high + 1
    low, high = gains["512"]["distilled_large"]["mean"]["interval"]
    task_low, task_high = gains["512"]["distilled_large"]["dsb2018"]["interval"]
    assert 4 < low < high < 6 and high - low < task_high - task_low
    assert "| 1024 | distilled_large | mean |" in capsys.readouterr().out


def test_runs_without_dice_per_case_have_no_interval(tmp_path):
    for start, dice in (("scratch", 0.5), ("distilled", 0.6)):
        write_run(tmp_path, "jsrt", start, 0, 512, np.full((4, 1), dice))
        file = tmp_path / "runs" / f"jsrt_{start}_0_512.json"
        run = json.loads(file.read_text())
        del run["dice_per_case"], run["canvas"]
        file.write_text(json.dumps(run))
    found = table.table(tmp_path)["gain_in_dice_points"]["512"]["distilled"]
    assert found["jsrt"]["gain"] == pytest.approx(10) and "interval" not in found["jsrt"]
    assert "interval" not in found["mean"]


def test_starts_are_compared_in_the_same_precision(tmp_path):
    dice = {("scratch", "float32"): 0.5, ("scratch", "bfloat16"): 0.45, ("encoder", "bfloat16"): 0.6}
    for (start, precision), value in dice.items():
        write_run(tmp_path, "jsrt", start, 0, 512, np.full((4, 1), value), precision)
    gains = table.table(tmp_path)["gain_in_dice_points"]["512"]
    assert {start: gain["jsrt"]["gain"] for start, gain in gains.items()} == pytest.approx(
        {"scratch, bfloat16": -5, "encoder, bfloat16": 15}
    )


def test_cases_without_a_class_are_excluded():
    dice = np.array([[[0.5, np.nan], [0.7, 0.9]]])
    assert table.foreground_mean(dice) == pytest.approx([(0.6 + 0.9) / 2])


def test_teachers_and_encoders_of_other_sizes_use_separate_folders(tmp_path):
    teachers = [Teacher(), Teacher(512), Teacher(512, 1.0), Teacher(512, 1.0, 50, 100)]
    folders = {settings.results(tmp_path, encoder) for settings in teachers for encoder in ENCODERS}
    assert len(folders) == len(teachers) * len(ENCODERS)
    name = "nnUNetTrainer__nnUNetResEncUNetMPlans__2d"
    assert Teacher().results(tmp_path, "bundled") == tmp_path / "nnUNet_results" / "Dataset923_bundled" / name
    assert encoder_folder(tmp_path, "bundled", "distilled", "large").name == "bundled_distilled_large"
