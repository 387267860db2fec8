"""The losses of a run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunet_hrmedseg.io.files import atomic_path

__all__ = ["draw_curve"]


def draw_curve(rows: Sequence[dict[str, float | None]], file: Path) -> None:
    """Training and validation loss over the images seen, as PNG; appears whole or not at all."""
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
