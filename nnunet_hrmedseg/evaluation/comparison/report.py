"""The report: one HTML file that needs nothing else, offline, on a desktop or a phone."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from nnunet_hrmedseg.evaluation.comparison import content as text
from nnunet_hrmedseg.evaluation.comparison.figures import (
    bland_altman,
    colours,
    differences,
    distribution,
    quality_against_cost,
)
from nnunet_hrmedseg.evaluation.comparison.gallery import Panel
from nnunet_hrmedseg.evaluation.comparison.results import Results
from nnunet_hrmedseg.io.colors import CLASS_COLORS
from nnunet_hrmedseg.measures import MEASURES

__all__ = ["breakable", "report"]

COSTS = (
    ("predict_seconds", "prediction, seconds per image", 1.0),
    ("training_bytes", "training memory, MiB per patch", 2.0**20),
    ("parameters", "parameters, millions", 1e6),
)

BREAKS = re.compile("(?<=__)|(?<=[a-z]{2})(?<!nn)(?=[A-Z])")  # nnUNet|Trainer|HERSeg|Scratch__|nnUNet|Plans


def report(results: Results, content: dict[str, Any], gallery: list[tuple[str, str, list[Panel]]]) -> str:
    """The HTML page. gallery: (why this case, case, its panels)."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["breakable"] = breakable
    environment.globals.update(
        interval=text.interval_text, header=text.header, number=text.number, p_value=text.p_value
    )
    template = environment.from_string(
        files("nnunet_hrmedseg.evaluation.comparison").joinpath("report.html.jinja").read_text("utf-8")
    )
    charts = {
        "differences": [differences(results, content["tests"], measure) for measure in results.measures]
        if results.rivals
        else [],
        "cost": [
            chart for cost in COSTS if (chart := quality_against_cost(results, content, cost[0], cost[1], cost[2]))
        ],
        "distributions": {
            name: [distribution(results, name, measure) for measure in results.measures] for name in results.classes
        },
        "sizes": {name: [bland_altman(results, model, name) for model in results.models] for name in results.classes},
    }
    return template.render(
        content=content,
        charts=charts,
        gallery=gallery,
        measures=results.measures,
        titles={measure: MEASURES[measure].title for measure in results.measures},
        best=_best(content),
        colours=colours(results),
        class_colours=dict(zip(results.classes, CLASS_COLORS * len(results.classes), strict=False)),
        area="area" if results.dimensions == 2 else "volume",
    )


def breakable(name: str) -> Markup:
    """A model's name as HTML that may be broken between its parts and words, so that tables fit on narrow screens."""
    return Markup("<wbr>").join(BREAKS.split(name))


def _best(content: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Row -> measure -> the best of the models' means."""
    best: dict[str, dict[str, float]] = {}
    for model in content["models"]:
        for row, measures in model["measures"].items():
            for measure, interval in measures.items():
                mean, so_far = interval["mean"], best.setdefault(row, {}).get(measure)
                if mean is not None and (so_far is None or (mean > so_far) == MEASURES[measure].higher_is_better):
                    best[row][measure] = mean
    return best
