"""Folds that are trained for a comparison: missing steps are run, and stock commands can use the models."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_hrmedseg.errors import SetupError
from nnunet_hrmedseg.evaluation.comparison.budget import BUDGET_FILE
from nnunet_hrmedseg.evaluation.comparison.train import train_fold
from tests.end_to_end.commands import NNUNet
from tests.end_to_end.conftest import TINY_UNET
from tests.end_to_end.datasets import write_image

pytestmark = pytest.mark.end_to_end

TRAINER = "TinyUNet"
NUMBER = 5


def build_discs(nnunet: NNUNet) -> None:
    """Five training images of 64 x 64 pixels, and one to predict."""
    dataset = nnunet.raw / f"Dataset{NUMBER:03d}_Discs"
    rows, columns = np.mgrid[:64, :64]
    random = np.random.default_rng(0)
    for part, cases in (("Tr", range(5)), ("Ts", range(1))):
        for folder in (f"images{part}", f"labels{part}"):
            (dataset / folder).mkdir(parents=True)
        for case in cases:
            disc = (np.hypot(rows - 25 - case, columns - 35 + case) < 14).astype(np.uint8)
            image = (disc * 100 + random.integers(0, 40, disc.shape)).astype(np.uint8)
            write_image(image, dataset / f"images{part}" / f"disc_{case}_0000.png")
            write_image(disc, dataset / f"labels{part}" / f"disc_{case}.png")
    description = {"channel_names": {"0": "gray"}, "labels": {"background": 0, "disc": 1}, "numTraining": 5}
    (dataset / "dataset.json").write_text(json.dumps(description | {"file_ending": ".png"}))


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    """Return nnU-Net's folders with a planned dataset, for this process and its child processes."""
    nnunet = NNUNet(tmp_path_factory.mktemp("compare"))
    build_discs(nnunet)
    nnunet.run("nnUNetv2_plan_and_preprocess", "-d", NUMBER, "-c", "2d", "-npfp", 1, "-np", 1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in nnunet.environment(**TINY_UNET).items():
            patch.setenv(name, value)
        yield nnunet
    for running in nnunet.running:
        running.kill()


def train(fold: int, **options) -> None:
    options = {"epochs": 2, "minutes": None, "device": "cpu", **options}
    train_fold(NUMBER, "2d", fold, TRAINER, "nnUNetPlans", **options)


def logs(folder) -> list[str]:
    return sorted(file.name for file in folder.glob("training_log_*.txt"))


@pytest.fixture(scope="module")
def trained(discs) -> SimpleNamespace:
    train(0, npz=True)
    folder = discs.model(NUMBER, TRAINER, "nnUNetPlans") / "fold_0"
    return SimpleNamespace(folder=folder, final=folder / "checkpoint_final.pth", validation=folder / "validation")


def test_checkpoint_is_that_of_the_stock_trainer(trained):
    checkpoint = torch.load(trained.final, weights_only=False)
    assert checkpoint["trainer_name"] == TRAINER
    assert checkpoint["current_epoch"] == len(checkpoint["logging"]["train_losses"]) == 2
    assert set(checkpoint["init_args"]) == {"plans", "configuration", "fold", "dataset_json", "device"}
    # the second of two epochs
    assert checkpoint["logging"]["lrs"] == pytest.approx([0.01, 0.01 * 0.5**0.9])


def test_budget_is_recorded(trained):
    record = json.loads((trained.folder / BUDGET_FILE).read_text())
    assert record["epochs"] == 2 and record["minutes"] is None
    assert record["iterations"] == 4 and record["iterations_per_epoch"] == [2, 2]
    assert record["training_seconds"] == pytest.approx(sum(record["seconds_per_epoch"]), abs=0.01)
    (log,) = logs(trained.folder)
    assert "4 iterations in 2 epochs" in (trained.folder / log).read_text()


def test_only_missing_steps_are_run(trained):
    before = trained.final.read_bytes()
    assert list(trained.validation.glob("*.npz"))
    train(0, npz=True)
    assert len(logs(trained.folder)) == 1

    shutil.rmtree(trained.validation)
    train(0)
    assert (trained.validation / "summary.json").is_file() and not list(trained.validation.glob("*.npz"))
    assert trained.final.read_bytes() == before
    assert len(logs(trained.folder)) == 2


def test_stock_commands_load_the_model(trained):
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(trained.folder.parent), use_folds=(0,))
    assert predictor.trainer_name == TRAINER
    assert predictor.predict_sliding_window_return_logits(torch.zeros(1, 1, 64, 64)).shape == (2, 1, 64, 64)


def test_killed_training_is_continued(trained):
    folder = trained.folder.with_name("fold_1")
    folder.mkdir()
    checkpoint = torch.load(trained.final, weights_only=False)
    one_epoch = {name: values[:1] for name, values in checkpoint["logging"].items()}
    torch.save(checkpoint | {"current_epoch": 1, "logging": one_epoch}, folder / "checkpoint_latest.pth")
    shutil.copy(trained.folder / BUDGET_FILE, folder)

    with pytest.raises(SetupError, match="a training of 2 epochs that stopped before epoch 1, .* now 3 epochs"):
        train(1, epochs=3)
    train(1)
    assert "Epoch 0" not in (folder / logs(folder)[-1]).read_text()
    record = json.loads((folder / BUDGET_FILE).read_text())
    former = json.loads((trained.folder / BUDGET_FILE).read_text())
    assert record["seconds_per_epoch"][0] == former["seconds_per_epoch"][0]
    assert record["seconds_per_epoch"][1] != former["seconds_per_epoch"][1]
    assert record["iterations"] == 4
    final = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    assert final["logging"]["train_losses"][0] == checkpoint["logging"]["train_losses"][0]
    assert final["current_epoch"] == len(final["logging"]["train_losses"]) == 2
    assert (folder / "validation" / "summary.json").is_file()


def test_failure_is_reported_with_the_model_and_its_output(discs, capfd):
    with pytest.raises(SetupError) as error:
        train_fold(NUMBER, "2d", 0, "NoSuch", "nnUNetPlans", epochs=None, minutes=2.0, device="cpu")
    assert "NoSuch, nnUNetPlans, 2d, fold 0 of dataset 5 failed with status 1" in str(error.value)
    assert "RuntimeError: Could not find requested nnunet trainer NoSuch" in str(error.value)
    assert "Could not find requested nnunet trainer NoSuch" in capfd.readouterr().err
