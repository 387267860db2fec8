"""Write the report: one self-contained HTML file, for desktop and phone."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from nnunet_hrmedseg.evaluation.comparison import content as text
from nnunet_hrmedseg.evaluation.comparison.figures import (
    bland_altman,
    colors,
    differences,
    distribution,
    quality_against_cost,
)
from nnunet_hrmedseg.evaluation.comparison.gallery import Panel
from nnunet_hrmedseg.evaluation.comparison.results import Results
from nnunet_hrmedseg.io.colors import CLASS_COLORS
from nnunet_hrmedseg.io.extras import import_extra
from nnunet_hrmedseg.measures import MEASURES

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["breakable", "report", "require_template_engine"]

COSTS = (
    ("predict_seconds", "prediction, seconds per image", 1.0),
    ("training_bytes", "training memory, MiB per patch", 2.0**20),
    ("parameters", "parameters, millions", 1e6),
)

BREAKS = re.compile("(?<=__)|(?<=[a-z]{2})(?<!nn)(?=[A-Z])")  # nnUNet|Trainer|HERSeg|Scratch__|nnUNet|Plans


def require_template_engine() -> Any:
    """Import jinja2.

    Raises:
        SetupError: it is not installed.
    """
    return import_extra("jinja2", "compare", "the report of hrmedseg compare")


def report(results: Results, content: dict[str, Any], gallery: list[tuple[str, str, list[Panel]]]) -> str:
    """Return the HTML page.

    Args:
        results: all values.
        content: the content of comparison.json.
        gallery: (why this case is shown, case, its panels).

    Raises:
        SetupError: jinja2 is not installed.
    """
    jinja2 = require_template_engine()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
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
        colors=colors(results),
        class_colors=dict(zip(results.classes, CLASS_COLORS * len(results.classes), strict=False)),
        area="area" if results.dimensions == 2 else "volume",
    )


def breakable(name: str) -> Markup:
    """Return a name as HTML that may break between its parts and words, so that tables fit on narrow screens."""
    from markupsafe import Markup

    return Markup("<wbr>").join(BREAKS.split(name))


def _best(content: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return row -> measure -> the best of the models' means."""
    best: dict[str, dict[str, float]] = {}
    for model in content["models"]:
        for row, measures in model["measures"].items():
            for measure, interval in measures.items():
                mean, so_far = interval["mean"], best.setdefault(row, {}).get(measure)
                if mean is not None and (so_far is None or (mean > so_far) == MEASURES[measure].higher_is_better):
                    best[row][measure] = mean
    return best
