"""A checkpoint written by an older version continues its training and predicts; see tests/data/hrmedseg_840e271."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_hrmedseg.trainers.hrmedseg import nnUNetTrainerHRMedSeg
from tests.nnunet_releases import since_nnunet
from tests.trainers.conftest import LABELS

DATA = Path(__file__).parents[1] / "data" / "hrmedseg_840e271"
CPU = torch.device("cpu")


@pytest.fixture
def model(tmp_path):
    """Return the model folder as written by the older version."""
    fold = tmp_path / "model" / "fold_0"
    fold.mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        shutil.copy(DATA / name, fold.parent / name)
    checkpoint = gzip.decompress((DATA / "checkpoint_latest.pth.gz").read_bytes())
    (fold / "checkpoint_latest.pth").write_bytes(checkpoint)
    return fold.parent


@since_nnunet("2.8", "the checkpoint was written with it")
def test_older_checkpoint_predicts_the_same_logits(model):
    predictor = nnUNetPredictor(device=CPU, perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_latest.pth")
    network = predictor.network.eval()
    network.cpu_bfloat16 = False
    network.load_state_dict(predictor.list_of_parameters[0])
    image = torch.linspace(-2, 2, 3 * 64 * 64).reshape(1, 3, 64, 64)
    with torch.no_grad():
        logits = network(image)[0, :, ::16, ::16]
    torch.testing.assert_close(logits, torch.tensor(json.loads((DATA / "logits.json").read_text())))


@since_nnunet("2.8", "the checkpoint was written with it")
def test_older_checkpoint_continues_its_training(model, dataset):
    plans = json.loads((model / "plans.json").read_text())
    trainer = nnUNetTrainerHRMedSeg({**plans, "continue_training": True}, "2d", 0, dataset(LABELS), CPU)
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 2, 4, 1
    trainer.initialize()
    trainer.load_checkpoint(str(model / "fold_0" / "checkpoint_latest.pth"))
    assert trainer.current_epoch == 1
    steps = {int(state["step"]) for state in trainer.optimizer.state.values()}
    assert steps == {4} and len(trainer.optimizer.state) == len(list(trainer.network.parameters()))
    trainer.run_training()
    assert trainer.current_epoch == 2
    assert {int(state["step"]) for state in trainer.optimizer.state.values()} == {8}
    assert np.isfinite(trainer.logger.get_value("train_losses", step=1))
