"""What several end-to-end tests build on, made once: planned data sets, trained models and their predictions.

Colour images are the longer half of the work, and the tests that pytest comes to first. The small canvas is the other
half, and is worked on meanwhile in a thread of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from tests.end_to_end.commands import CPU, TRAINERS, NNUNet
from tests.end_to_end.datasets import (
    IGNORE,
    REGIONS,
    RGB,
    VOLUMES,
    build_ignore,
    build_regions,
    build_rgb,
    build_volumes,
)

PLANS = "nnUNetHRMedSegPlans"
TINY = {"nnUNet_extTrainer": str(TRAINERS / "hrmedseg")}
TINY_UNET = {"nnUNet_extTrainer": str(TRAINERS / "stock")}
ONE_EPOCH = "nnUNetTrainerHRMedSeg_1epoch"
SMALL_CANVAS = [64, 80]


@pytest.fixture(scope="session")
def nnunet(tmp_path_factory) -> Iterator[NNUNet]:
    """nnU-Net's three folders, with the four data sets as raw data."""
    nnunet = NNUNet(tmp_path_factory.mktemp("nnunet"))
    for build in (build_rgb, build_regions, build_ignore, build_volumes):
        build(nnunet.raw)
    yield nnunet
    for running in nnunet.running:
        running.kill()


# ---- colour images: stock plans, 1024 x 1024 -------------------------------------------------------------------------


@pytest.fixture(scope="session")
def stock_planned(nnunet) -> list[str]:
    """The RGB data set, planned and preprocessed as for any nnU-Net. Returns the names of what that made."""
    nnunet.run("nnUNetv2_plan_and_preprocess", "-d", RGB, "-c", "2d", "-npfp", 1, "-np", 1)
    return sorted(path.name for path in (nnunet.preprocessed / nnunet.dataset(RGB)).iterdir())


@pytest.fixture(scope="session")
def killed_preprocessing(nnunet, stock_planned) -> SimpleNamespace:
    """A first training on stock plans, killed while it was making the canvas data."""
    folder = nnunet.preprocessed / nnunet.dataset(RGB)
    training = nnunet.start("nnUNetv2_train", RGB, "2d", 0, "-tr", "TinyHRMedSeg", *CPU, **TINY)
    training.wait_until(lambda: list(folder.glob("HRMedSeg_1024x1024_*.incomplete-*/*")))
    training.kill()
    return SimpleNamespace(folder=folder, left_behind=sorted(path.name for path in folder.glob("HRMedSeg_*")))


@pytest.fixture(scope="session")
def trained_folds(nnunet, killed_preprocessing) -> SimpleNamespace:
    """HRMedSeg on stock plans: folds 0 and 1 started at the same moment, neither of them with canvas data.

    The lock that both ask for is held until both have asked. Fold 1 is killed after its first epoch and continued.
    """
    (lock_file,) = killed_preprocessing.folder.glob("HRMedSeg_1024x1024_*.lock")
    train = ("nnUNetv2_train", RGB, "2d")
    options = ("-tr", "TinyHRMedSeg", *CPU, "--npz")
    model = nnunet.model(RGB, "TinyHRMedSeg", "nnUNetPlans")
    with FileLock(lock_file, timeout=60):
        folds = [nnunet.start(*train, fold, *options, **TINY) for fold in (0, 1)]
        for fold in folds:
            fold.wait_until(lambda fold=fold: "Waiting for another process" in fold.output)
    folds[1].wait_until((model / "fold_1" / "checkpoint_latest.pth").is_file)
    folds[1].kill()
    killed = sorted(path.name for path in (model / "fold_1").iterdir())
    continued = nnunet.start(*train, 1, *options, "--c", **TINY)
    outputs = [folds[0].wait().output, folds[1].output]
    return SimpleNamespace(
        model=model, outputs=outputs, killed=killed, continued=continued.wait().output, lock_file=Path(lock_file)
    )


# ---- grey images and volumes: HRMedSeg plans, a small canvas ---------------------------------------------------------


class SmallCanvas:
    """Three data sets from planning to prediction, one command after the other in the background."""

    def __init__(self, nnunet: NNUNet, folder: Path, submit: Callable[..., Future]):
        self.nnunet, self.folder = nnunet, folder
        self.planned = submit(self._plan)
        self.trained: dict[int, Future] = {}
        self.predicted: dict[int, Future] = {}
        for number, fold in ((REGIONS, 0), (VOLUMES, 0), (IGNORE, "all")):
            self.trained[number] = submit(self._train, number, fold)
            self.predicted[number] = submit(self._predict, number, fold)

    def _plan(self) -> str:
        numbers = (REGIONS, IGNORE, VOLUMES)
        plan = ("nnUNetv2_plan_and_preprocess", "-d", *numbers, "-pl", "nnUNetPlannerHRMedSeg", "-npfp", 1, "--no_pp")
        output = self.nnunet.run(*plan).output
        for number in numbers:
            self.nnunet.edit_plans(number, PLANS, patch_size=SMALL_CANVAS)
        return output

    def _train(self, number: int, fold: object) -> SimpleNamespace:
        train = ["nnUNetv2_train", number, "2d", fold, "-p", PLANS, "-tr", ONE_EPOCH, *CPU]
        if number == IGNORE:
            # of a data set with another number of classes
            weights = self.nnunet.model(REGIONS, ONE_EPOCH, PLANS) / "fold_0" / "checkpoint_final.pth"
            train += ["-pretrained_weights", weights]
        output = self.nnunet.run(*train).output
        return SimpleNamespace(folder=self.nnunet.model(number, ONE_EPOCH, PLANS), output=output)

    def _predict(self, number: int, fold: object) -> Path:
        output = self.folder / self.nnunet.dataset(number)
        return self.nnunet.predict(number, ONE_EPOCH, PLANS, [fold], output)


@pytest.fixture(scope="session")
def small_canvas(nnunet, tmp_path_factory) -> Iterator[SmallCanvas]:
    pool = ThreadPoolExecutor(1)
    yield SmallCanvas(nnunet, tmp_path_factory.mktemp("small_canvas"), pool.submit)
    pool.shutdown(wait=False, cancel_futures=True)


@pytest.fixture(scope="session", autouse=True)
def start_small_canvas(request) -> None:
    """At once, if any of the tests will ask for it."""
    if any("small_canvas" in item.fixturenames for item in request.session.items):
        request.getfixturevalue("small_canvas")


@pytest.fixture(scope="session")
def regions_model(small_canvas) -> SimpleNamespace:
    """Two regions of grey images, trained for one real epoch: `folder` of the model, `output` of the command."""
    return small_canvas.trained[REGIONS].result()


@pytest.fixture(scope="session")
def volumes_model(small_canvas) -> SimpleNamespace:
    """Volumes, trained slice by slice for one real epoch."""
    return small_canvas.trained[VOLUMES].result()


@pytest.fixture(scope="session")
def ignore_model(small_canvas) -> SimpleNamespace:
    """Partly annotated images, all of them trained on for one real epoch, from the weights of `regions_model`."""
    return small_canvas.trained[IGNORE].result()
