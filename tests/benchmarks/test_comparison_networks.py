"""Networks of other libraries in the HRMedSeg trainer, as nnU-Net finds them, from training to prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_hrmedseg.evaluation.benchmark.networks import CONTENDERS
from nnunet_hrmedseg.nnunet_versions import build_network, find_trainer
from nnunet_hrmedseg.trainers.hrmedseg import nnUNetTrainerHRMedSegScratch
from tests.nnunet_releases import since_nnunet
from tests.trainers.conftest import LABELS, dataset  # noqa: F401
from tests.trainers.tiny_trainers import CPU, _plans

FOLDER = Path(__file__).parents[2] / "benchmarks" / "trainers"
ROWS = {
    "nnUNetTrainerSegFormerB0": ("smp_segformer_b0", 3_714_658),
    "nnUNetTrainerMobileNetUNet": ("smp_mobilenet_unet", 6_629_090),
}


@pytest.mark.slow
@since_nnunet("2.8", "nnUNet_extTrainer, and networks built from plans and configuration")
@pytest.mark.parametrize("name", ROWS)
def test_trains_and_predicts(dataset, monkeypatch, name):  # noqa: F811
    pytest.importorskip("segmentation_models_pytorch")
    monkeypatch.setenv("nnUNet_extTrainer", str(FOLDER))
    cls = find_trainer(name)
    assert issubclass(cls, nnUNetTrainerHRMedSegScratch)
    trainer = cls(_plans(), "2d", 0, dataset(LABELS), CPU)
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
    trainer.on_train_start()
    contender, parameters = ROWS[name]
    counted = CONTENDERS[contender].build(3, 2, 64).network
    assert sum(p.numel() for p in counted.parameters()) == parameters
    assert type(trainer.network) is type(counted)
    before = {key: p.detach().clone() for key, p in trainer.network.named_parameters()}
    trainer.on_train_epoch_start()
    outputs = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(2)]
    trainer.progress.close()
    assert all(np.isfinite(output["loss"]) for output in outputs)
    assert sum(not torch.equal(before[key], p) for key, p in trainer.network.named_parameters()) > 0.9 * len(before)
    rates = {group["decoder"]: len(group["params"]) for group in trainer.optimizer.param_groups}
    assert rates[False] == len(list(trainer.network.encoder.parameters())) and sum(rates.values()) == len(before)
    assert "segmentation_models_pytorch" in Path(trainer.log_file).read_text()

    file = Path(trainer.output_folder) / "checkpoint_final.pth"
    trainer.save_checkpoint(str(file))
    built = build_network(cls, trainer.plans_manager, trainer.configuration_manager, 3, 3, False)
    built.load_state_dict(torch.load(file, weights_only=False)["network_weights"])
    with torch.no_grad():
        assert built.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)
