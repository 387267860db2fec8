import csv
import io
import json
import math

import numpy as np
import pytest

from nnunet_hrmedseg.evaluation.comparison.content import as_content, as_csv, as_table
from nnunet_hrmedseg.evaluation.comparison.cost import Cost
from nnunet_hrmedseg.evaluation.comparison.results import Results

STOCK, OURS = "nnUNetTrainer__nnUNetPlans__2d", "nnUNetTrainerHRMedSeg__nnUNetPlans__2d"


def make_results(cases: int = 12, models: tuple[str, ...] = (STOCK, OURS)) -> Results:
    """Results of two classes; the first case has no square, and only the baseline predicts one."""
    generator = np.random.default_rng(0)
    values = {}
    for i, model in enumerate(models):
        dice = generator.uniform(0.6, 0.9, (cases, 2)) + 0.05 * i
        values[model] = np.stack([dice, dice / (2 - dice), dice - 0.1, 30 * (1 - dice)], axis=-1)
        values[model][0, 1] = (0, 0, 0, 60) if model == STOCK else np.nan
    true_sizes = generator.uniform(100, 400, (cases, 2))
    true_sizes[0, 1] = 0
    sizes = {model: true_sizes * generator.uniform(0.8, 1.2, (cases, 2)) for model in models}
    sizes[models[0]][0, 1] = 5
    cost = Cost([64, 64], 2, 1_000_000, 10**9, 2**24, 3.5, 10, 600.0, 432, 0.25, 3)
    return Results(
        dataset="Dataset007_shapes",
        folds=["0", "1"],
        cases=[f"case{i}" for i in range(cases)],
        classes=["disc", "square"],
        measures=["Dice", "IoU", "NSD", "HD95"],
        unit="px",
        dimensions=2,
        tolerance=2.0,
        surface_library="MONAI 9.8.7",
        models=list(models),
        baseline=models[0],
        values=values,
        sizes=sizes,
        true_sizes=true_sizes,
        costs={models[0]: cost, models[-1]: "no checkpoint"},
        warnings=["<b>something</b> was left out"],
    )


def test_titles_are_as_short_as_possible() -> None:
    assert make_results().titles == {STOCK: "nnUNetTrainer", OURS: "nnUNetTrainerHRMedSeg"}
    named = make_results(models=("T__a__2d", "T__b__2d", "ensemble of T__a__2d and T__b__2d"))
    assert named.titles == {
        "T__a__2d": "a",
        "T__b__2d": "b",
        "ensemble of T__a__2d and T__b__2d": "ensemble of a and b",
    }
    assert make_results(models=("T__p__2d", "T__p__2d_1024")).titles["T__p__2d"] == "2d"
    assert make_results(models=("T__p__2d",)).titles == {"T__p__2d": "T"}


def test_case_means_use_only_defined_values() -> None:
    results = make_results()
    means = results.case_means(OURS, "Dice")
    assert means[0] == pytest.approx(results.values[OURS][0, 0, 0])
    assert means[1] == pytest.approx(results.values[OURS][1, :, 0].mean())


def test_false_positives_are_counted() -> None:
    results = make_results()
    assert results.false_alarms(STOCK, "square") == (1, 1)
    assert results.false_alarms(OURS, "square") == (0, 1)
    assert results.false_alarms(OURS, "disc") == (0, 0)


def test_all_classes_and_measures_are_tested_and_corrected_together() -> None:
    tests = make_results().tests()
    assert len(tests) == 2 * 4
    assert all(corrected >= pair.p for pair, corrected in tests.values())
    assert tests[OURS, "square", "Dice"][0].difference.n == 11
    assert tests[OURS, "disc", "Dice"][0].difference.n == 12


def test_content_is_json_without_nan() -> None:
    results = make_results()
    results.values[OURS][:, 1] = math.nan
    content = as_content(results, "cpu")
    text = json.dumps(content, allow_nan=False)
    assert json.loads(text) == content
    assert content["models"][1]["measures"]["square"]["Dice"] == {"mean": None, "low": None, "high": None, "n": 0}
    assert content["models"][0]["cost"]["how"]["epoch_seconds"] == "read from its logs"
    assert content["models"][1]["cost"] == "no checkpoint"
    assert content["surface_library"] == "MONAI 9.8.7"


def test_csv_contains_every_case_in_full_precision() -> None:
    results = make_results()
    rows = list(csv.DictReader(io.StringIO(as_csv(results))))
    assert len(rows) == 2 * 12 * 2
    assert rows[1]["case"] == "case0" and rows[1]["class"] == "square"
    mine = [row for row in rows if row["model"] == OURS]
    assert mine[1]["Dice"] == ""
    assert float(mine[2]["Dice"]) == results.values[OURS][1, 0, 0]


def test_table_has_means_intervals_and_tests() -> None:
    results = make_results()
    table = as_table(as_content(results, "cpu"))
    assert "nnUNetTrainer (baseline)" in table
    assert f"{results.interval(OURS, 'disc', 'Dice').mean:.4f} [" in table
    assert "HD95, px" in table
    assert "p, Holm" in table
    assert table.endswith("Surface measures computed by MONAI 9.8.7.\n")
    assert len({len(line) for line in table.split("\n\n")[1].splitlines()}) == 1  # aligned


def test_single_model_has_a_table_without_tests() -> None:
    content = as_content(make_results(models=(STOCK,)), "cpu")
    assert content["tests"] == []
    assert "against the baseline" not in as_table(content)
