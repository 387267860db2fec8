"""Draw the charts of the report as SVG text. They are small, so that the page can place them side by side."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnunet_hrmedseg.evaluation.comparison.results import Results
from nnunet_hrmedseg.measures import MEASURES

__all__ = ["bland_altman", "colors", "differences", "distribution", "quality_against_cost", "wrapped"]

BASELINE_COLOR = "#6b7280"
# by Okabe and Ito, distinguishable for color-blind readers
RIVAL_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
WIDTH = 4.2  # inches; the page scales it

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the reader's font
    "svg.hashsalt": "hrmedseg",  # the same chart is the same file
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
}


def colors(results: Results) -> dict[str, str]:
    """Return the color of each model in all charts."""
    rivals = {model: RIVAL_COLORS[i % len(RIVAL_COLORS)] for i, model in enumerate(results.rivals)}
    return {results.baseline: BASELINE_COLOR, **rivals}


def distribution(results: Results, name: str, measure: str) -> str:
    """Draw all cases of a class as dots, with a box over the quartiles and a line at the median."""
    models = results.models
    with matplotlib.rc_context(STYLE):
        figure, axes = _chart(0.75 + 0.62 * len(models), f"{name}: {measure}")
        model_colors = colors(results)
        for place, model in enumerate(reversed(models)):
            values = results.class_values(model, name, measure)[:, 0]
            values = values[np.isfinite(values)]
            if not len(values):
                continue
            low, median, high = np.percentile(values, (25, 50, 75))
            axes.barh(place, high - low, left=low, height=0.34, color=model_colors[model], alpha=0.28, linewidth=0)
            axes.plot([median, median], [place - 0.2, place + 0.2], color=model_colors[model], linewidth=2)
            shift = np.random.default_rng(0).uniform(-0.15, 0.15, len(values))
            axes.scatter(values, place + shift, s=6, color=model_colors[model], alpha=0.6, linewidths=0)
            axes.annotate(
                wrapped(results.titles[model], 60),
                (0, place + 0.28),
                xycoords=("axes fraction", "data"),
                fontsize=8,
                color="#374151",
            )
        axes.set_ylim(-0.45, len(models) - 0.35)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        if MEASURES[measure].has_unit:
            _logarithmic(axes, zero=any((results.class_values(model, name, measure) < 1).any() for model in models))
        axes.set_xlabel(f"{measure}, {results.unit}" if MEASURES[measure].has_unit else measure)
        return _svg(figure)


def differences(results: Results, tests: list[dict[str, Any]], measure: str) -> str:
    """Draw the mean difference of each model to the baseline with its 95 % interval, for each class."""
    own = [test for test in tests if test["measure"] == measure and test["difference"]["mean"] is not None]
    lines = len(results.rivals) + 1  # for a class: its name, and one line for each rival
    with matplotlib.rc_context(STYLE):
        height = 0.9 + 0.24 * lines * len(results.classes)
        figure, axes = _chart(height, f"{measure}: difference to {results.titles[results.baseline]}")
        model_colors = colors(results)
        for test in own:
            interval, color = test["difference"], model_colors[test["model"]]
            place = -lines * results.classes.index(test["class"]) - results.rivals.index(test["model"]) - 1
            axes.plot([interval["low"], interval["high"]], [place, place], color=color, linewidth=2)
            axes.plot(interval["mean"], place, "o", color=color, markersize=5)
        for i, name in enumerate(results.classes):
            axes.annotate(
                name, (0, -lines * i), xycoords=("axes fraction", "data"), va="center", fontsize=8, color="#374151"
            )
        axes.axvline(0, color="#111827", linewidth=0.8)
        axes.set_ylim(-lines * len(results.classes), 0.6)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        worse, better = ("worse", "better") if MEASURES[measure].higher_is_better else ("better", "worse")
        axes.set_xlabel(f"{worse}  \N{LEFTWARDS ARROW}   0   \N{RIGHTWARDS ARROW}  {better}")
        return _svg(figure)


def bland_altman(results: Results, model: str, name: str) -> str:
    """Draw the difference of predicted and true size over their mean, with bias and 95 % limits of agreement."""
    index = results.classes.index(name)
    truth, predicted = results.true_sizes[:, index], results.sizes[model][:, index]
    difference, middle = predicted - truth, (predicted + truth) / 2
    bias = difference.mean()
    spread = 1.96 * difference.std(ddof=1) if len(difference) > 1 else 0.0
    with matplotlib.rc_context(STYLE):
        figure, axes = _chart(2.7, f"{name}: {results.titles[model]}", title_width=44)
        axes.scatter(middle, difference, s=9, color=colors(results)[model], alpha=0.65, linewidths=0)
        for height, style in ((bias, "-"), (bias - spread, "--"), (bias + spread, "--")):
            axes.axhline(height, color="#111827", linewidth=0.9, linestyle=style)
            axes.annotate(
                f"{_short(height)}",
                (1, height),
                xycoords=("axes fraction", "data"),
                fontsize=8,
                ha="right",
                va="bottom",
            )
        what = "area" if results.dimensions == 2 else "volume"
        unit = results.unit + ("\N{SUPERSCRIPT TWO}" if results.dimensions == 2 else "\N{SUPERSCRIPT THREE}")
        axes.set_xlabel(f"mean of true and predicted {what}, {unit}")
        axes.set_ylabel("predicted - true")
        axes.ticklabel_format(scilimits=(-3, 4))
        return _svg(figure)


def quality_against_cost(results: Results, content: dict[str, Any], cost: str, label: str, scale: float) -> str | None:
    """Draw the mean Dice with its interval over one of the costs, on a logarithmic axis.

    Models are identified by color only, as names next to the points would overlap.

    Returns:
        the chart, or None if no cost is known.
    """
    points = []
    for model in content["models"]:
        known = model["cost"][cost] if isinstance(model["cost"], dict) else None
        interval = model["measures"][results.rows[0]]["Dice"]
        if known and interval["mean"] is not None:
            points.append((model, known / scale, interval))
    if not points:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = _chart(2.8, label)
        model_colors = colors(results)
        for model, x, interval in points:
            color = model_colors[model["name"]]
            axes.plot([x, x], [interval["low"], interval["high"]], color=color, linewidth=1.5)
            axes.plot(x, interval["mean"], "o", color=color, markersize=6)
        lowest, highest = min(x for _, x, _ in points), max(x for _, x, _ in points)
        axes.set_xlim(lowest / 1.6, highest * 1.6)
        _logarithmic(axes)
        axes.set_xlabel(label)
        axes.set_ylabel("Dice")
        return _svg(figure)


def wrapped(text: str, width: int) -> str:
    """Break text into lines of up to `width` characters, at spaces and between the parts of a model's name."""
    lines = [""]
    for piece in re.findall(r".+?(?:__|\s|$)", text):
        if lines[-1] and len(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def _chart(height: float, title: str, title_width: int = 52) -> tuple[Figure, Axes]:
    title = wrapped(title, title_width)
    figure = Figure(figsize=(WIDTH, height + 0.17 * title.count("\n")), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes


def _logarithmic(axes: Axes, zero: bool = False) -> None:
    """Set a logarithmic axis with plain numbers; with `zero` it also has values from 0 to 1."""
    if zero:
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(left=0)
    else:
        axes.set_xscale("log")
        lowest, highest = axes.get_xlim()
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=[1, 2, 5] if highest < 100 * lowest else [1]))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())


def _short(value: float) -> str:
    return f"{value:+.3g}" if abs(value) < 1000 else f"{value:+.2e}"


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    # the page decides the size
    return re.sub(
        r'<svg ([^>]*?)height="[^"]*" ([^>]*?)width="[^"]*"|<svg ([^>]*?)width="[^"]*" height="[^"]*"',
        r"<svg \1\2\3",
        svg,
        count=1,
    )
