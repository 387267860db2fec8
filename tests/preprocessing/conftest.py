"""Fixtures of the canvas data tests."""

from tests.preprocessing.canvas_folders import data, processes, workers_at_once

__all__ = ["data", "processes", "workers_at_once"]
