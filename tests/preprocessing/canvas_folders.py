"""A raw dataset whose canvas data the tests create, damage and recreate."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from skimage import io

from nnunet_hrmedseg.io.raw_cases import find_raw_cases
from nnunet_hrmedseg.plans.overrides import hrmedseg_plans
from nnunet_hrmedseg.preprocessing import case_workers
from nnunet_hrmedseg.preprocessing.canvas_dataset import canvas_data_status, ensure_canvas_data
from nnunet_hrmedseg.preprocessing.preprocessor import HRMedSegPreprocessor
from tests.plans.stock_plans import stock_plans

NAME = "Dataset001_Test"
CASES = ("a", "b", "c")


class RawDataset:
    """A small raw dataset on disk, and operations on its canvas data."""

    def __init__(self, root):
        self.raw, self.preprocessed = root / "raw", root / "preprocessed"
        self.images, self.labels = self.raw / NAME / "imagesTr", self.raw / NAME / "labelsTr"
        self.gt = self.preprocessed / NAME / "gt_segmentations"
        for folder in (self.images, self.labels, self.preprocessed / NAME):
            folder.mkdir(parents=True)
        self.json = {
            "labels": {"background": 0, "cell": 1},
            "channel_names": {"0": "gray"},
            "numTraining": len(CASES),
            "file_ending": ".png",
        }
        for case in CASES:
            self.write(case)
        plans = stock_plans()
        plans["configurations"]["2d"].update(normalization_schemes=["ZScoreNormalization"], use_mask_for_norm=[False])
        self.use_canvas(hrmedseg_plans(plans, num_training_cases=3), [32, 48])

    def use_canvas(self, plans, canvas):
        plans["configurations"]["2d"]["patch_size"] = canvas
        self.plans = hrmedseg_plans(plans, num_training_cases=3)
        self.folder = self.preprocessed / NAME / self.plans["configurations"]["2d"]["data_identifier"]

    def write(self, case, label=1, seed=None):
        rng = np.random.default_rng(ord(case[0]) if seed is None else seed)
        mask = np.zeros((20, 30), dtype=np.uint8)
        mask[5:15, 5:20] = label
        io.imsave(
            self.images / f"{case}_0000.png", rng.integers(1, 255, (20, 30), dtype=np.uint8), check_contrast=False
        )
        io.imsave(self.labels / f"{case}.png", mask, check_contrast=False)

    def ensure(self, **kwargs):
        """Create the canvas data if necessary. Return the folder and the log."""
        lines = []
        arguments = {
            "preprocessor": HRMedSegPreprocessor(verbose=False),
            "raw": self.raw,
            "preprocessed": self.preprocessed,
            "num_processes": 1,
            "log": lines.append,
        }
        return ensure_canvas_data(self.plans, "2d", self.json, **{**arguments, **kwargs}), lines

    def status(self):
        return canvas_data_status(self.folder, self.json, find_raw_cases(self.raw / NAME, self.json))

    def remove(self, case):
        (self.images / f"{case}_0000.png").unlink()
        (self.labels / f"{case}.png").unlink()

    def write_splits(self, *cases):
        """Write two folds of these cases, as nnU-Net does."""
        folds = [{"train": list(cases[1:]), "val": [cases[0]]}, {"train": list(cases[:-1]), "val": [cases[-1]]}]
        (self.folder.parent / "splits_final.json").write_text(json.dumps(folds))

    def content(self):
        """Return the files of the canvas data and their content, without marks of trainings."""
        files = [file for file in self.folder.rglob("*") if file.is_file() and file.suffix != ".lock"]
        return {file.relative_to(self.folder): file.read_bytes() for file in files}

    def leftovers(self):
        return sorted(p.name for p in self.folder.parent.iterdir() if ".incomplete" in p.name or ".replaced" in p.name)


@pytest.fixture
def data(tmp_path):
    return RawDataset(tmp_path)


class SlowPreprocessor(HRMedSegPreprocessor):
    """A preprocessor that needs `seconds` per case; meanwhile, `lock_file` is locked."""

    show_progress_bar = False

    def __init__(self, seconds, lock_file=None):
        super().__init__(verbose=False)
        self.seconds, self.lock_file = seconds, lock_file

    def run_case_save(self, output, *args, **kwargs):
        super().run_case_save(output, *args, **kwargs)
        if self.lock_file:
            self.lock = FileLock(f"{self.lock_file}-{Path(output).name}")
            self.lock.acquire()
        time.sleep(self.seconds)


class DyingPreprocessor(HRMedSegPreprocessor):
    """A preprocessor that is killed, as by the operating system when memory runs out."""

    def run_case_save(self, output, *args, **kwargs):
        os._exit(9)


@pytest.fixture(scope="module")
def processes():
    """Return a context of processes that start quickly, because their server has imported everything."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")  # Windows has only spawn, which starts slowly
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@pytest.fixture
def workers_at_once(monkeypatch):
    monkeypatch.setattr(case_workers, "SPAWN_WORKERS_AFTER_SECONDS", 0)
    monkeypatch.setattr(case_workers, "usable_cores", lambda: 2)


CHANGES = {
    "added: d": lambda data: data.write("d"),
    "removed: b": lambda data: (data.images / "b_0000.png").unlink(),
    "changed: b": lambda data: data.write("b", seed=7),
    "changed: c": lambda data: data.write("c", label=0),
    "labels in dataset.json": lambda data: data.json.update(labels={"background": 0, "cell": 1, "ignore": 2}),
}
