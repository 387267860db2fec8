import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest

from nnunet_hrmedseg.evaluation.comparison import report as module
from nnunet_hrmedseg.evaluation.comparison.content import as_content
from nnunet_hrmedseg.evaluation.comparison.figures import (
    bland_altman,
    colors,
    differences,
    distribution,
    quality_against_cost,
    wrapped,
)
from nnunet_hrmedseg.evaluation.comparison.gallery import Panel
from nnunet_hrmedseg.evaluation.comparison.report import breakable, report
from tests.evaluation.comparison.test_results import OURS, STOCK, make_results

VOID = {"meta", "img", "br", "link", "wbr"}


class Balanced(HTMLParser):
    """A parser that fails on a tag closed in the wrong place, and collects the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page(**changes: object) -> Balanced:
    results = make_results(**changes)  # type: ignore[arg-type]
    panels = [Panel("truth", "data:image/jpeg;base64,AAAA", 10, 10)]
    parser = Balanced()
    parser.feed(report(results, as_content(results, "cpu"), [("best case", "case3", panels)]))
    assert parser.open == []
    return parser


def test_page_is_self_contained() -> None:
    for source in page().sources:
        assert source.startswith(("data:", "#"))


def test_page_shows_the_content() -> None:
    results = make_results()
    text = " ".join(" ".join(page().text).split())
    assert f"{results.interval(OURS, 'mean', 'Dice').mean:.4f}" in text
    assert "Against the baseline" in text
    assert "no checkpoint" in text
    assert "10.0 432 iterations" in text
    assert "best case: case3" in text
    assert "<b>something</b> was left out" in text  # displayed as text instead of interpreted
    assert "False alarms" in text
    assert "1 of 1" in text
    assert "computed by MONAI 9.8.7" in text


def bold(html: str, measures: list[str]) -> dict[str, dict[str, list[str]]]:
    """Return row of the quality tables -> measure -> models with a bold cell."""
    quality = html[html.index("<h2>Quality</h2>") : html.index("<h2>Against the baseline</h2>")]
    found = {}
    for table in quality.split("<h3>")[1:4]:
        of_row: dict[str, list[str]] = {measure: [] for measure in measures}
        for line in re.findall("<tr><td>(.*?)</tr>", table, re.DOTALL):
            model = re.sub("<small>.*|<[^>]*>", "", line.split("</td>")[0]).strip()
            cells = re.findall("<td([^>]*)>", line)[: len(measures)]
            for measure, attributes in zip(measures, cells, strict=True):
                of_row[measure] += [model] if attributes == ' class="best"' else []
        found[table.split("</h3>")[0]] = of_row
    return found


def test_best_value_of_each_measure_is_bold(monkeypatch: pytest.MonkeyPatch) -> None:
    for chart in ("bland_altman", "differences", "distribution", "quality_against_cost"):
        monkeypatch.setattr(module, chart, lambda *arguments: "")  # to save time
    results = make_results(cases=2, models=(STOCK, OURS, "other"))
    for model, values in ((STOCK, (0.7, 0.9, 0.5, 5)), (OURS, (0.9, 0.8, 0.5, 9)), ("other", (0.8, 0.7, 0.4, 2))):
        results.values[model][:] = values
    html = report(results, as_content(results, "cpu"), [])
    best = {"Dice": [results.titles[OURS]], "IoU": [results.titles[STOCK]], "HD95": ["other"]}
    best["NSD"] = [results.titles[STOCK], results.titles[OURS]]
    assert bold(html, results.measures) == {row: best for row in ("mean of the classes", "disc", "square")}


@pytest.mark.parametrize(("measure", "left", "right"), [("Dice", "worse", "better"), ("HD95", "better", "worse")])
def test_axis_of_differences_shows_which_side_is_better(measure: str, left: str, right: str) -> None:
    results = make_results()
    chart = ET.fromstring(differences(results, as_content(results, "cpu")["tests"], measure))
    texts = [" ".join("".join(text.itertext()).split()) for text in chart.iter("{http://www.w3.org/2000/svg}text")]
    assert f"{left} \N{LEFTWARDS ARROW} 0 \N{RIGHTWARDS ARROW} {right}" in texts


def test_single_model_has_a_page() -> None:
    text = " ".join(page(models=(STOCK,)).text)
    assert "Against the baseline" not in text


def test_charts_are_scalable_svgs() -> None:
    results = make_results()
    content = as_content(results, "cpu")
    charts = [
        distribution(results, "disc", "Dice"),
        distribution(results, "square", "HD95"),
        differences(results, content["tests"], "NSD"),
        bland_altman(results, OURS, "disc"),
        quality_against_cost(results, content, "parameters", "parameters, millions", 1e6),
    ]
    for chart in charts:
        assert chart is not None
        root = ET.fromstring(chart)
        assert "viewBox" in root.attrib
        assert "width" not in root.attrib and "height" not in root.attrib


def test_unknown_cost_has_no_chart() -> None:
    results = make_results()
    results.costs = {}
    assert quality_against_cost(results, as_content(results, "cpu"), "parameters", "parameters", 1e6) is None


def test_bland_altman_shows_bias_and_limits() -> None:
    results = make_results()
    truth, predicted = results.true_sizes[:, 0], results.sizes[OURS][:, 0]
    difference = predicted - truth
    chart = bland_altman(results, OURS, "disc")
    shown = {float(number.replace("\N{MINUS SIGN}", "-")) for number in re.findall(r">([+-][0-9.]+)<", chart)}
    for expected in (
        difference.mean(),
        *(difference.mean() + sign * 1.96 * difference.std(ddof=1) for sign in (-1, 1)),
    ):
        assert any(abs(expected - number) < 0.01 * abs(expected) + 0.01 for number in shown)


def test_long_names_can_break_between_words() -> None:
    name = "nnUNetTrainerHRMedSegScratch__nnUNetHRMedSegPlans_512__2d"
    broken = str(breakable(name)).split("<wbr>")
    assert "".join(broken) == name
    assert max(map(len, broken)) <= len("nnUNet") + len("Scratch__")
    assert broken[:2] == ["nnUNet", "Trainer"]
    assert breakable("<b>__<i>") == "&lt;b&gt;__<wbr>&lt;i&gt;"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("short", ["short"]),
        ("heart: nnUNetTrainer__nnUNetPlans", ["heart: nnUNetTrainer__", "nnUNetPlans"]),
        ("one two three four five six seven", ["one two three four five", "six seven"]),
        ("a_name_that_has_no_place_to_be_broken at all", ["a_name_that_has_no_place_to_be_broken", "at all"]),
        ("ensemble of A__B__2d and C__D__2d", ["ensemble of A__B__2d and", "C__D__2d"]),
        ("", [""]),
    ],
)
def test_titles_are_wrapped(text: str, lines: list[str]) -> None:
    assert wrapped(text, 24).split("\n") == lines


def test_close_points_are_distinguished_by_colors_and_a_legend() -> None:
    results = make_results()
    content = as_content(results, "cpu")
    chart = quality_against_cost(results, content, "parameters", "parameters", 1e6)
    assert chart is not None and not any(title in chart for title in results.titles.values())
    html = report(results, content, [])
    cost = html[html.index("<h2>Cost</h2>") : html.index("<h2>Cases</h2>")]
    legend = cost[cost.index("</table>") : cost.index("<svg")]
    for model, color in colors(results).items():
        assert f'background: {color}"></span>{breakable(results.titles[model])}</span>' in legend


@pytest.mark.slow
@pytest.mark.parametrize("cases", [1, 2])
def test_very_few_cases_have_a_page(cases: int) -> None:
    page(cases=cases)


def test_models_keep_their_colors() -> None:
    three = make_results(models=(STOCK, OURS, "other"))
    assert len(set(colors(three).values())) == 3
    assert colors(three)[STOCK] == colors(make_results())[STOCK]


def test_undefined_values_are_excluded_from_charts() -> None:
    results = make_results()
    results.values[OURS][:, 1] = np.nan
    assert "<svg" in distribution(results, "square", "HD95")
    assert "<svg" in differences(results, as_content(results, "cpu")["tests"], "HD95")
