"""The losses of a run: rows of losses.csv, and their curve as losses.png."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_hrmedseg.io.files import atomic_path, write_atomically

__all__ = ["COLUMNS", "History", "draw_curve"]

COLUMNS = ("epoch", "images", "learning_rate", "loss", "validation_loss", "seconds")
"""Columns of losses.csv. The loss of a row is the mean since the previous row."""


@dataclass
class History:
    """Rows of losses.csv.

    Attributes:
        rows: Column -> value, in the order of training; None where nothing was measured.
    """

    rows: list[dict[str, float | None]] = field(default_factory=list)

    def last(self, column: str) -> float | None:
        """Return the last value of a column, None if there is none."""
        return next((row[column] for row in reversed(self.rows) if row[column] is not None), None)

    def write(self, file: Path) -> None:
        """Write the rows as CSV."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: "" if v is None else f"{v:.6g}" for k, v in row.items()} for row in self.rows)
        write_atomically(file, text.getvalue().encode())


def draw_curve(rows: Sequence[dict[str, float | None]], file: Path) -> None:
    """Draw training and validation loss over the number of images seen, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for column, label, style in (("loss", "training", "-"), ("validation_loss", "validation", "o-")):
        points = [(row["images"], row[column]) for row in rows if row[column] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    axes.set(xlabel="images seen", ylabel="loss")
    if all((row["loss"] or 1) > 0 for row in rows):
        axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format="png")
