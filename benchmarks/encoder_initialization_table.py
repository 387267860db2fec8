"""Tabulate the results of `encoder_initialization.py train`: gains over random weights, with 95 % intervals.

    python benchmarks/encoder_initialization_table.py WORK [-o FILE]    default: results/encoder_initialization.json

A gain is the difference of nnU-Net's mean foreground Dice, averaged over the seeds available for both starts. Its
interval comes from a paired bootstrap of the held-out cases: both starts are evaluated on the same resampled cases. The
interval of the mean gain resamples the cases of every task. Runs without Dice per case have no interval. Runs in
mixed precision are compared with random weights in the same precision, and those with random weights in float32.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

if __package__:
    from benchmarks.encoder_initialization import CANVAS, IMAGE_STEPS, SEEDS
    from benchmarks.encoder_initialization_data import TASKS
else:
    from encoder_initialization import CANVAS, IMAGE_STEPS, SEEDS
    from encoder_initialization_data import TASKS

RESAMPLES = 10_000
RANDOM = "scratch"
Key = tuple[int, str, str, int]
"""Canvas, task, start (with the encoder's learning rate if set, and the precision unless it is float32), seed."""


def key_of(run: dict[str, Any]) -> Key:
    precision = run.get("precision", "float32")
    rate = run.get("encoder_lr")
    start = run["start"] + ("" if rate is None else f" at {rate:g}")
    start += "" if precision == "float32" else f", {precision}"
    return run.get("canvas", CANVAS), run["task"], start, run["seed"]


def baseline_of(start: str) -> str:
    """Return the start that this one is compared with."""
    name, comma, precision = start.partition(", ")
    return RANDOM if name == RANDOM else RANDOM + comma + precision


def case_matrix(runs: Iterable[dict[str, Any]]) -> np.ndarray | None:
    """Return Dice as (seeds, cases, classes), NaN for absent classes; None if a run has no Dice per case."""
    tables = [run.get("dice_per_case") for run in runs]
    if not all(tables):
        return None
    cases, labels = sorted(tables[0]), sorted(tables[0][next(iter(tables[0]))])
    return np.array([[[table[case][label] for label in labels] for case in cases] for table in tables], float)


def foreground_mean(dice: np.ndarray) -> np.ndarray:
    """Average Dice (..., cases, classes) over cases, then classes, as in nnU-Net's summary."""
    return np.nanmean(np.nanmean(dice, axis=-2), axis=-1)


def bootstrap_gains(scratch: np.ndarray, started: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return gains in Dice points (RESAMPLES,) on resampled cases, averaged over the seeds."""
    gains = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        cases = random.integers(0, scratch.shape[1], scratch.shape[1])
        gains[index] = 100 * (foreground_mean(started[:, cases]) - foreground_mean(scratch[:, cases])).mean()
    return gains


def interval(gains: np.ndarray) -> list[float]:
    return np.percentile(gains, [2.5, 97.5]).tolist()


def task_gain(runs: dict[Key, dict[str, Any]], canvas: int, task: str, start: str) -> dict[str, Any] | None:
    """Return the gain of a start over random weights on one task; None if they have no seed in common."""
    baseline = baseline_of(start)
    seeds = [seed for seed in SEEDS if {(canvas, task, baseline, seed), (canvas, task, start, seed)} <= runs.keys()]
    if not seeds:
        return None
    scratch, started = ([runs[canvas, task, name, seed] for seed in seeds] for name in (baseline, start))
    means = [float(np.mean([run["dice"] for run in group])) for group in (scratch, started)]
    matrices = [case_matrix(group) for group in (scratch, started)]
    found: dict[str, Any] = {"scratch": means[0], "started": means[1], "gain": 100 * (means[1] - means[0])}
    if matrices[0] is not None and matrices[1] is not None:
        found["resampled"] = bootstrap_gains(matrices[0], matrices[1], np.random.default_rng(0))
        found["interval"] = interval(found["resampled"])
    return {**found, "seeds": seeds}


def start_gains(runs: dict[Key, dict[str, Any]], canvas: int, start: str) -> dict[str, dict[str, Any]]:
    """Return the gains of a start on every task, and their mean."""
    found = {task: gain for task in TASKS if (gain := task_gain(runs, canvas, task, start)) is not None}
    resampled = [gain.pop("resampled", None) for gain in found.values()]
    if found:
        mean: dict[str, Any] = {"gain": float(np.mean([gain["gain"] for gain in found.values()]))}
        if all(gains is not None for gains in resampled):
            # the tasks are independent: their resampled gains are combined in any order
            shuffled = [np.random.default_rng(i).permutation(gains) for i, gains in enumerate(resampled)]
            mean["interval"] = interval(np.mean(shuffled, axis=0))
        found = {**found, "mean": mean}
    return found


def describe(canvas: int, start: str, gains: dict[str, dict[str, Any]]) -> str:
    lines = []
    for task, gain in gains.items():
        low_high = " ({:+.1f} to {:+.1f})".format(*gain["interval"]) if "interval" in gain else ""
        dice = f"{gain['scratch']:.3f} | {gain['started']:.3f}" if "scratch" in gain else "|"
        lines.append(f"| {canvas} | {start} | {task} | {dice} | {gain['gain']:+.1f}{low_high} |")
    return "\n".join(lines)


def collect_cards(runs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the cards of the encoders by sha256, and remove local paths from the runs."""
    cards = {}
    for run in runs:
        file = Path(run["encoder"].pop("file"))
        if file.is_file():
            card = json.loads(file.with_suffix(".json").read_text())
            if Path(run["start"]).is_absolute():
                run["start"] = card["name"]
            cards[run["encoder"]["sha256"]] = {key: card[key] for key in ("made_by", "data", "recipe", "losses")}
    return cards


def table(work: Path) -> dict[str, Any]:
    import torch

    from nnunet_hrmedseg.io.machine import processor_name

    runs = [json.loads(file.read_text()) for file in sorted((work / "runs").glob("*.json"))]
    cards = collect_cards(runs)
    by_key = {key_of(run): run for run in runs}
    gains: dict[str, dict[str, Any]] = {}
    print("| canvas | start | task | Dice from random weights | Dice from the start | gain (95 % interval) |")
    for canvas in sorted({key[0] for key in by_key}):
        for start in sorted({key[2] for key in by_key} - {RANDOM}):
            found = start_gains(by_key, canvas, start)
            if found:
                gains.setdefault(str(canvas), {})[start] = found
                print(describe(canvas, start, found))
    return {
        "image_steps": IMAGE_STEPS,
        "machine": processor_name(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "date": datetime.date.today().isoformat(),
        "gain_in_dice_points": gains,
        "runs": runs,
        "encoders": cards,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    output = Path(__file__).parent / "results" / "encoder_initialization.json"
    parser.add_argument("-o", "--output", type=Path, default=output)
    args = parser.parse_args()
    content = table(args.work)
    args.output.write_text(json.dumps(content, indent=2) + "\n")
