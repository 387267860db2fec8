"""The page docs/how-to/add-an-encoder.md, step by step: one file adds a network with another encoder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.training_memory import step_gb
from hrmedseg_onnx.model import OnnxModel
from nnunet_hrmedseg.deployment.onnx_export import export_onnx
from nnunet_hrmedseg.evaluation.benchmark.networks import CONTENDERS
from nnunet_hrmedseg.nnunet_versions import find_trainer
from nnunet_hrmedseg.plans import specs
from nnunet_hrmedseg.plans.overrides import hrmedseg_plans, is_hrmedseg_configuration
from tests.deployment.tiny_models import difference_in_logits, predictor_of
from tests.nnunet_releases import since_nnunet
from tests.plans.stock_plans import stock_plans
from tests.trainers.conftest import LABELS, dataset

__all__ = ["dataset"]  # a fixture

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "add-an-encoder.md"
NAME, TRAINER = "ConvHRMedSeg", "nnUNetTrainerConvHRMedSeg"
pytestmark = since_nnunet("2.8", "nnUNet_extTrainer")
CPU = torch.device("cpu")


@pytest.fixture
def trainer_class(tmp_path, monkeypatch):
    """Return the trainer of the page, as nnU-Net finds it."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    folder = tmp_path / "my_trainers"
    folder.mkdir()
    (folder / "conv_encoder.py").write_text(code)
    monkeypatch.setenv("nnUNet_extTrainer", str(folder))
    networks = dict(specs.NETWORKS)
    yield find_trainer(TRAINER)
    specs.NETWORKS.clear()
    specs.NETWORKS.update(networks)


def small_plans():
    plans = hrmedseg_plans(stock_plans(), num_training_cases=5, network=NAME)
    configuration = plans["configurations"]["2d"]
    configuration["patch_size"] = [64, 48]
    configuration["architecture"]["arch_kwargs"].update(width=8, decoder_dim=32)
    return {**plans, "continue_training": False}


def test_plans_contain_the_network(trainer_class):
    configuration = hrmedseg_plans(stock_plans(), num_training_cases=1000, network=NAME)["configurations"]["2d"]
    assert is_hrmedseg_configuration(configuration)
    expected = {"width": 32, "decoder_dim": 256, "recompute": False}
    assert configuration["architecture"]["arch_kwargs"] == expected and configuration["batch_size"] == 16
    small = hrmedseg_plans(stock_plans(), num_training_cases=1000, network=NAME, gpu_memory_target_gb=2)
    small = small["configurations"]["2d"]
    assert small["architecture"]["arch_kwargs"]["recompute"] is True and 2 <= small["batch_size"] < 16


def test_memory_on_the_page_equals_that_of_the_network(trainer_class):
    memory = specs.NETWORKS[NAME].memory
    for recompute, contender in ((False, "convhrmedseg"), (True, "convhrmedseg_recompute")):
        built = CONTENDERS[contender].build(3, 2, 512)
        counted = step_gb(built.network.train(), built.loss, (1, 3, 512, 512), 2)
        estimate = memory.training_gb(1, (512, 512), num_input_channels=3, num_classes=2, recompute=recompute)
        assert estimate == pytest.approx(counted, rel=0.15)


@pytest.mark.slow
def test_network_trains_predicts_and_exports(trainer_class, dataset, tmp_path):
    description = dataset(LABELS)
    trainer = trainer_class(small_plans(), "2d", 0, description, CPU)
    trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch, trainer.num_epochs = 2, 1, 1
    trainer.run_training()
    assert type(trainer.network).__name__ == NAME
    log = Path(trainer.log_file).read_text()
    assert "Estimated training memory" in log and "64 x 48" in log

    model = Path(trainer.output_folder_base)
    predictor = predictor_of(model)
    image = np.random.default_rng(0).integers(0, 255, (3, 1, 40, 50)).astype(np.float32)
    segmentation = predictor.predict_single_npy_array(image, {"spacing": [999, 1, 1]})
    assert segmentation.shape == (1, 40, 50)

    exported = export_onnx(model=model, output=tmp_path / "export").folder
    sidecar = json.loads((exported / "model.json").read_text())
    assert sidecar["network"] == NAME and sidecar["canvas"] == [64, 48]
    assert difference_in_logits(predictor, OnnxModel(exported), image, [999, 1, 1]) < 1e-3


def test_recomputation_does_not_change_a_step(trainer_class):
    network_class = specs.NETWORKS[NAME].load_network()
    image, gradients = torch.randn(2, 3, 64, 64), []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = network_class(3, 2, width=8, decoder_dim=32, recompute=recompute)
        assert network.encoder.recompute is network.decoder.recompute is recompute
        network(image).square().mean().backward()
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])
