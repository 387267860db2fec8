"""Pages and learning curves of the full-length trainings, drawn from benchmarks/results/full_training."""

from __future__ import annotations

from pathlib import Path

__all__ = ["report"]


def report(recorded: Path, docs: Path) -> None:
    raise SystemExit("nothing is recorded yet")
