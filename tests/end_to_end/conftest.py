"""Fixtures for several end-to-end tests, created once in each process: planned datasets and trained models.

Test files for color images run in one process, those for the small canvas in another (tests/conftest.py).
"""

from __future__ import annotations

from collections.abc import Iterator
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
    """Create nnU-Net's three folders, with the four raw datasets."""
    nnunet = NNUNet(tmp_path_factory.mktemp("nnunet"))
    for build in (build_rgb, build_regions, build_ignore, build_volumes):
        build(nnunet.raw)
    yield nnunet
    for running in nnunet.running:
        running.kill()


# ---- color images: stock plans, 1024 x 1024 -------------------------------------------------------------------------


@pytest.fixture(scope="session")
def stock_planned(nnunet) -> list[str]:
    """Plan and preprocess the RGB dataset by stock nnU-Net. Return the names of the created files and folders."""
    nnunet.run("nnUNetv2_plan_and_preprocess", "-d", RGB, "-c", "2d", "-npfp", 1, "-np", 1)
    return sorted(path.name for path in (nnunet.preprocessed / nnunet.dataset(RGB)).iterdir())


@pytest.fixture(scope="session")
def killed_preprocessing(nnunet, stock_planned) -> SimpleNamespace:
    """Start a training on stock plans, and kill it while it creates the canvas data."""
    folder = nnunet.preprocessed / nnunet.dataset(RGB)
    training = nnunet.start("nnUNetv2_train", RGB, "2d", 0, "-tr", "TinyHRMedSeg", *CPU, **TINY)
    training.wait_until(lambda: list(folder.glob("HRMedSeg_1024x1024_*.incomplete-*/*")))
    training.kill()
    return SimpleNamespace(folder=folder, left_behind=sorted(path.name for path in folder.glob("HRMedSeg_*")))


@pytest.fixture(scope="session")
def trained_folds(nnunet, killed_preprocessing) -> SimpleNamespace:
    """Train HRMedSeg on stock plans: folds 0 and 1 start simultaneously without canvas data.

    The lock that both need is held until both have requested it. Fold 1 is killed after its first epoch and continued.
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


# ---- gray images and volumes: HRMedSeg plans, a small canvas ---------------------------------------------------------


@pytest.fixture(scope="session")
def small_canvas(nnunet) -> str:
    """Plan three datasets and write a small canvas into their plans. Return the output of planning."""
    numbers = (REGIONS, IGNORE, VOLUMES)
    plan = ("nnUNetv2_plan_and_preprocess", "-d", *numbers, "-pl", "nnUNetPlannerHRMedSeg", "-npfp", 1, "--no_pp")
    output = nnunet.run(*plan).output
    for number in numbers:
        nnunet.edit_plans(number, PLANS, patch_size=SMALL_CANVAS)
    return output


def train_small(nnunet: NNUNet, number: int, fold: object, *options: object) -> SimpleNamespace:
    """Train one epoch on a small canvas. Return `folder` of the model and `output` of the command."""
    train = ("nnUNetv2_train", number, "2d", fold, "-p", PLANS, "-tr", ONE_EPOCH, *CPU)
    output = nnunet.run(*train, *options).output
    return SimpleNamespace(folder=nnunet.model(number, ONE_EPOCH, PLANS), output=output)


@pytest.fixture(scope="session")
def regions_model(nnunet, small_canvas) -> SimpleNamespace:
    """Train on two regions of grayscale images."""
    return train_small(nnunet, REGIONS, 0)


@pytest.fixture(scope="session")
def volumes_model(nnunet, small_canvas) -> SimpleNamespace:
    """Train on volumes, slice by slice."""
    return train_small(nnunet, VOLUMES, 0)


@pytest.fixture(scope="session")
def ignore_model(nnunet, regions_model) -> SimpleNamespace:
    """Train on all of the partly annotated images, from weights of a dataset with another number of classes."""
    weights = regions_model.folder / "fold_0" / "checkpoint_final.pth"
    return train_small(nnunet, IGNORE, "all", "-pretrained_weights", weights)


# ---- nnU-Net while this package is broken ----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def broken_package(tmp_path_factory) -> dict[str, str]:
    """Return an environment in which importing this package fails, as after an interrupted update."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "nnunet_hrmedseg").mkdir()
    (folder / "nnunet_hrmedseg" / "__init__.py").write_text("raise ImportError('half an update')\n")
    return {"PYTHONPATH": str(folder)}
