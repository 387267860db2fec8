"""The page and the learning curves of the full-length trainings, from benchmarks/results/full_training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

try:
    from benchmarks.full_training_rows import DATASETS, ROWS
except ModuleNotFoundError:  # as a script
    from full_training_rows import DATASETS, ROWS  # type: ignore[import-not-found, no-redef]

__all__ = ["report"]

PAGE, BEGIN, END = (
    "full_training.md",
    "<!-- written by benchmarks/full_training.py report -->\n",
    "<!-- end of the written part -->\n",
)
MODELS = {
    "nnUNetTrainerMeasured": "stock nnU-Net",
    "nnUNetTrainerMeasuredHRMedSeg": "HRMedSeg",
    "nnUNetTrainerMeasuredHERSeg": "HER-Seg",
    "nnUNetTrainerMeasuredSegFormerB0": "SegFormer-B0",
    "nnUNetTrainerMeasuredMobileNetUNet": "U-Net, MobileNetV2 encoder",
}
PAPERS_PROTOCOL = "arXiv 2504.06205v1, 1024 x 1024, from a SAM-distilled encoder, 200 passes"
PUBLISHED = {
    "cvc_clinicdb": f"HRMedSeg 0.944, nnU-Net's network in the same recipe 0.911 ({PAPERS_PROTOCOL})",
    "dsb2018": f"HRMedSeg 0.921, nnU-Net's network in the same recipe 0.905 ({PAPERS_PROTOCOL})",
    "jsrt": "lungs 0.980, heart 0.951, clavicles 0.922 (arXiv 1810.02113, from Jaccard indices, five folds)",
}
RESAMPLES, CONFIDENCE = 10_000, 95


def report(recorded: Path, docs: Path) -> None:
    """Rewrite the figures of docs/benchmarks/full_training.md and its pictures from the recorded rows."""
    rows = {file.stem: json.loads(file.read_text()) for file in sorted(recorded.glob("*.json"))}
    rows = {row.name: rows[row.name] for row in ROWS if row.name in rows}  # in the order of the table
    parts = []
    for name, dataset in DATASETS.items():
        long = {key: row for key, row in rows.items() if row["row"]["dataset"] == name and row["row"]["fold"] == 0}
        if not long:
            continue
        picture = docs / "images" / f"full_training_{name}.png"
        draw_curves(long, dataset.classes, picture)
        heading = f"## {dataset.title[0].upper()}{dataset.title[1:]}"
        curves = f"![Learning curves: {dataset.title}](../images/{picture.name})"
        parts += [heading, curves, result_table(long, dataset.classes), f"Published: {PUBLISHED[name]}."]
    trials = {key: row for key, row in rows.items() if row["row"]["fold"] == 1}
    if trials:
        parts += ["## Recipe trials", trial_table(trials)]
    page = docs / "benchmarks" / PAGE
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(before + BEGIN + "\n" + "\n\n".join(parts) + "\n\n" + END + after, encoding="utf-8")
    print(f"{page}: {len(rows)} rows, {sum(row['finished'] for row in rows.values())} of them finished")


def result_table(rows: dict[str, dict[str, Any]], classes: list[str]) -> str:
    titles = [
        "model",
        "canvas",
        "start",
        "image-steps",
        "processor hours",
        "Dice",
        *(classes if len(classes) > 1 else []),
    ]
    lines = [titles, ["---"] * len(titles)]
    for row in rows.values():
        settings, last = row["row"], row["curve"][-1]
        measured = row.get("test_final") or row.get("validation")
        steps, hours = f"{last['image_steps']:,}", f"{last['processor_seconds'] / 3600:.1f}"
        canvas = str(settings["canvas"] or "nnU-Net's plan")
        cells = [MODELS[settings["trainer"]], canvas, settings["start"] or "random weights"]
        if measured is None:
            lines.append([*cells, f"{steps} so far", hours, *["in training"] + [""] * (len(titles) - 6)])
            continue
        values = per_case(measured)
        each = [f"{value:.3f}" for value in values.mean(0)] if len(classes) > 1 else []
        lines.append([*cells, steps, hours, interval(values.mean(1)), *each])
    return table(lines)


def trial_table(rows: dict[str, dict[str, Any]]) -> str:
    titles = ["trial", "image-steps", "Dice", "Dice of the averaged weights"]
    lines = [titles, ["---"] * len(titles)]
    for name, row in rows.items():
        last = next((point for point in reversed(row["curve"]) if "dice" in point), None)
        if last is None:
            continue
        dice, averaged = (
            f"{np.mean(list(last[kind].values())):.3f}" if kind in last else "" for kind in ("dice", "dice_averaged")
        )
        lines.append([name.removeprefix("trial_").replace("_", " "), f"{last['image_steps']:,}", dice, averaged])
    return table(lines)


def table(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def per_case(measured: dict[str, Any]) -> np.ndarray:
    """Dice, (cases, classes)."""
    return np.array([list(case.values()) for case in measured["cases"].values()], float)


def interval(values: np.ndarray) -> str:
    """Mean over the cases, and the bootstrap interval of it."""
    generator = np.random.default_rng(0)
    means = values[generator.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
    low, high = np.percentile(means, [(100 - CONFIDENCE) / 2, (100 + CONFIDENCE) / 2])
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def draw_curves(rows: dict[str, dict[str, Any]], classes: list[str], file: Path) -> None:
    """Dice of the validation images over processor hours, a panel for each class, a line for each row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(classes), figsize=(2 + 4 * len(classes), 3.6), squeeze=False)
    for index, (label, axis) in enumerate(zip(classes, axes[0], strict=True)):
        for row in rows.values():
            settings = row["row"]
            points = [point for point in row["curve"] if "dice" in point]
            hours = [point["processor_seconds"] / 3600 for point in points]
            start = f", from {settings['start']}" if settings["start"] else ""
            dice = [list(point["dice"].values())[index] for point in points]
            axis.plot(hours, dice, marker=".", label=f"{MODELS[settings['trainer']]}{start}")
        axis.set(title=label, xlabel="processor hours", ylim=(None, 1))
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("Dice, validation images")
    axes[0, -1].legend(loc="lower right", fontsize="small")
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120, metadata={"Software": None})
    pyplot.close(figure)
