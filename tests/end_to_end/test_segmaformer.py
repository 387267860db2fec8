"""SegMaFormer on small volumes of thick slices: planned, trained, killed, continued and predicted by stock commands."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

from tests.end_to_end.commands import CPU, TRAINERS, NNUNet
from tests.end_to_end.datasets import above_chance
from tests.nnunet_releases import FEWEST_WORKERS

pytestmark = pytest.mark.end_to_end

NUMBER, NAME = 5, "Dataset005_Balls"
SPACING = (1.0, 0.9, 4.0)  # x, y, z
ORIGIN = (5.0, -30.0, 12.5)
SIZE = (52, 47, 13)
TINY = {"nnUNet_extTrainer": str(TRAINERS / "segmaformer"), "nnUNet_n_proc_DA": "0"}


def write_case(dataset: Path, part: str, case: str, random: np.random.Generator) -> None:
    """Write a bright ball with a brighter core in noise."""
    z, y, x = np.mgrid[: SIZE[2], : SIZE[1], : SIZE[0]]
    cz, cy, cx = random.integers(5, 8), random.integers(18, 28), random.integers(18, 33)
    distance = np.sqrt((4 * (z - cz)) ** 2 + (y - cy) ** 2 + (x - cx) ** 2)
    labels = (distance < 16).astype(np.uint8) + (distance < 8)
    image = 100.0 * labels + 20 * random.standard_normal(labels.shape)
    for folder, array, name in (("images", image.astype(np.float32), f"{case}_0000"), ("labels", labels, case)):
        volume = sitk.GetImageFromArray(array)
        volume.SetSpacing(SPACING)
        volume.SetOrigin(ORIGIN)
        sitk.WriteImage(volume, str(dataset / f"{folder}{part}" / f"{name}.nii.gz"))


@pytest.fixture(scope="module")
def nnunet(tmp_path_factory):
    """Create nnU-Net's folders, with one dataset of five training cases and a new one."""
    nnunet = NNUNet(tmp_path_factory.mktemp("volumes"))
    dataset = nnunet.raw / NAME
    for folder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (dataset / folder).mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(5):
        write_case(dataset, "Tr", f"ball_{number}", random)
    write_case(dataset, "Ts", "new", random)
    description = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "ball": 1, "core": 2},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    (dataset / "dataset.json").write_text(json.dumps(description))
    yield nnunet
    for running in nnunet.running:
        running.kill()


@pytest.fixture(scope="module")
def trained(nnunet) -> SimpleNamespace:
    """Train on stock plans; kill the training after its first epoch, and continue it."""
    nnunet.run("nnUNetv2_plan_and_preprocess", "-d", NUMBER, "-c", "3d_fullres", "-npfp", 1, "-np", 1)
    train = ("nnUNetv2_train", NUMBER, "3d_fullres", 0, "-tr", "TinySegMaFormer", *CPU)
    fold = nnunet.results / NAME / "TinySegMaFormer__nnUNetPlans__3d_fullres" / "fold_0"
    first = nnunet.start(*train, **TINY)
    first.wait_until((fold / "checkpoint_latest.pth").is_file)
    first.kill()
    continued = nnunet.run(*train, "--c", **TINY)
    return SimpleNamespace(fold=fold, output=continued.output)


def test_network_follows_the_anisotropy_and_other_settings_are_nnunets(nnunet, trained):
    plans = json.loads((trained.fold.parent / "plans.json").read_text())["configurations"]["3d_fullres"]
    stock = nnunet.plans(NUMBER, "nnUNetPlans")["configurations"]["3d_fullres"]
    architecture = plans.pop("architecture")
    assert stock.pop("architecture")["network_class_name"].endswith("PlainConvUNet")
    assert plans == stock
    assert architecture["network_class_name"] == "nnunet_hrmedseg.architectures.SegMaFormer"
    assert architecture["arch_kwargs"]["strides"][0] == [1, 4, 4]


def test_killed_training_is_continued(trained):
    assert "Epoch 1" in trained.output and "Epoch 0" not in trained.output
    assert "Mamba runs in plain torch" in trained.output
    assert (trained.fold / "checkpoint_final.pth").is_file()


def test_prediction_has_the_geometry_of_its_image_and_finds_the_ball(nnunet, trained, tmp_path):
    images = nnunet.raw / NAME / "imagesTs"
    model = ("-d", NUMBER, "-c", "3d_fullres", "-f", 0, "-tr", "TinySegMaFormer", "-p", "nnUNetPlans")
    workers = ("-npp", FEWEST_WORKERS, "-nps", FEWEST_WORKERS)
    nnunet.run("nnUNetv2_predict", *model, "-i", images, "-o", tmp_path, *workers, *CPU, **TINY)
    image, prediction = sitk.ReadImage(str(images / "new_0000.nii.gz")), sitk.ReadImage(str(tmp_path / "new.nii.gz"))
    assert prediction.GetSize() == image.GetSize() == SIZE
    assert prediction.GetSpacing() == pytest.approx(SPACING)
    assert prediction.GetOrigin() == pytest.approx(ORIGIN)
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(nnunet.raw / NAME / "labelsTs" / "new.nii.gz")))
    found = sitk.GetArrayFromImage(prediction)
    assert set(np.unique(found)) <= {0, 1, 2}
    assert above_chance(found > 0, truth > 0) > 0.5
