"""Format the content of a benchmark's JSON file as tables in Markdown."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from nnunet_hrmedseg.errors import format_names
from nnunet_hrmedseg.evaluation.benchmark.networks import CONTENDERS

__all__ = ["NO_PEAK", "table"]

MIB = 2**20
NO_PEAK = "no_peak_resident_bytes"
"""Key of a row that should have peak_resident_bytes but has not: the reason."""


def table(content: dict[str, Any]) -> str:
    """Return one table for each size and number of classes. A dash is a missing measurement, with the reason below."""
    parts = [f"{content['machine']}, {content['device']}, {content['precision']}, {content['date']}"]
    for (size, classes), rows in groupby(content["rows"], key=lambda row: (row["size"], row["classes"])):
        of_size = list(rows)
        sides = " x ".join([str(size)] * CONTENDERS[of_size[0]["network"]].dimensions)
        parts.append(f"\n{sides}, {classes} classes\n\n" + _table_of(of_size))
    return "\n".join(parts) + "\n"


def _table_of(rows: list[dict[str, Any]]) -> str:
    cuda = any("peak_allocated_bytes" in row for row in rows)
    peak = "peak_allocated_beyond_weights_bytes" if cuda else "peak_resident_bytes"
    columns = []
    for title, training, key, unit in (
        ("kept, MiB per image", True, "kept_for_backward_bytes", MIB),
        ("peak, MiB per image" if cuda else "peak resident, MiB per image", True, peak, MIB),
        ("training step, s per image", True, "median_seconds", 1),
        ("prediction, s per image", False, "median_seconds", 1),
    ):
        sizes = sorted({row["batch_size"] for row in rows if row["training"] is training and key in row})
        columns += [(f"{title}, batch {size}", (training, size), key, unit) for size in sizes]
    headers = ["network", "parameters, M", "GMACs", *(column[0] for column in columns)]
    lines = ["| " + " | ".join(headers) + " |", "|" + "---|" * len(headers)]
    notes = []
    for name in dict.fromkeys(row["network"] for row in rows):
        own = {(row["training"], row["batch_size"]): row for row in rows if row["network"] == name}
        some = next(iter(own.values()))
        cells = [CONTENDERS[name].title, f"{some['parameters'] / 1e6:.2f}", f"{some['multiply_accumulates'] / 1e9:.2f}"]
        cells += [_cell(own.get(case), key, unit) for _, case, key, unit in columns]
        lines.append("| " + " | ".join(cells) + " |")
        for (training, size), row in own.items():
            if "left_out" in row:
                what = "training" if training else "prediction"
                notes.append(f"{CONTENDERS[name].title}, {what} at batch {size}: left out, {row['left_out']}")
    notes += _without_peak(rows)
    return "\n".join([*lines, "", *notes]) if notes else "\n".join(lines)


def _without_peak(rows: list[dict[str, Any]]) -> list[str]:
    """Return one line for each reason. Except on Linux, all rows have the same."""
    cases: dict[str, list[str]] = {}
    for row in rows:
        if NO_PEAK in row:
            case = f"{CONTENDERS[row['network']].title} at batch {row['batch_size']}"
            cases.setdefault(row[NO_PEAK], []).append(case)
    return [f"No peak of {format_names(of_reason, 3)}: {reason}" for reason, of_reason in cases.items()]


def _cell(row: dict[str, Any] | None, key: str, unit: float) -> str:
    if row is None or key not in row:
        return "-"
    value = row[key] / row["batch_size"] / unit
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
