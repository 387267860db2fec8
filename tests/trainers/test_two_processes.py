"""One epoch of nnU-Net's own training loop in two processes, as `-num_gpus 2` runs it, on the CPU.

GPU-specific parts are replaced: the device, NCCL by gloo, and SyncBatchNorm, which torch rejects on a CPU.
"""

import json
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_hrmedseg.nnunet_versions import nnunet_folders
from nnunet_hrmedseg.trainers.hrmedseg import nnUNetTrainerHRMedSeg
from nnunet_hrmedseg.trainers.losses import DiceAndPixelLoss
from tests.trainers.conftest import LABELS
from tests.trainers.tiny_trainers import CANVAS, _plans

pytestmark = pytest.mark.slow

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def _train(rank, folder, plans, description):
    """Run one of two processes."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # of the weights: all processes get those of rank 0
    group = (folder / "group").as_uri()
    distributed.init_process_group("gloo", init_method=group, rank=rank, world_size=2)
    nnunet.DDP = lambda network, device_ids: DistributedDataParallel(network)
    nn.SyncBatchNorm.convert_sync_batchnorm = staticmethod(lambda network: network)
    with nnunet_folders(**{name: folder / name for name in FOLDERS}), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        trainer = nnUNetTrainerHRMedSeg(plans, "2d", "all", description)
        assert trainer.is_ddp and trainer.device == torch.device("cuda", rank)
        trainer.device, trainer.grad_scaler = torch.device("cpu"), None
        trainer.num_epochs, trainer.num_iterations_per_epoch = 1, 3
        trainer.run_training()
    found = {
        "batch_size": trainer.batch_size,
        "validations": trainer.num_val_iterations_per_epoch,
        "weights": {name: p.detach() for name, p in trainer.plain_network.named_parameters()},
        "losses": [trainer.logger.get_value(name, step=-1) for name in ("train_losses", "val_losses")],
        "dice": trainer.logger.get_value("dice_per_class_or_region", step=-1),
        "warnings": [str(warning.message) for warning in warned],
        "ddp": isinstance(trainer.loss, DiceAndPixelLoss) and trainer.loss.ddp,
    }
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_epoch_of_two_processes_with_different_shares_of_the_batch(dataset, tmp_path, monkeypatch, recompute):
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    monkeypatch.setenv("nnUNet_compile", "f")
    plans = _plans(recompute=recompute)
    plans["configurations"]["2d"]["batch_size"] = 3
    train = partial(_train, folder=tmp_path, plans=plans, description=dataset(LABELS))
    processes = multiprocessing.spawn(train, nprocs=2, join=False, daemon=False)
    deadline = time.monotonic() + 600
    while not processes.join(timeout=10):
        assert time.monotonic() < deadline, "the two processes wait for each other"

    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    assert [first["batch_size"], second["batch_size"]] == [2, 1] and first["ddp"]
    assert first["validations"] == second["validations"] == 4  # two passes over five images, three at a time
    assert first["weights"].keys() == second["weights"].keys()
    for name, value in first["weights"].items():
        torch.testing.assert_close(second["weights"][name], value, rtol=0, atol=0, msg=name)
    assert first["losses"] == second["losses"] and np.isfinite(first["losses"]).all()
    assert len(first["dice"]) == 2 and first["dice"] == second["dice"]
    assert not [text for text in first["warnings"] + second["warnings"] if "strides" in text]
    results = Path(tmp_path, "nnUNet_results")
    (checkpoint,) = results.rglob("checkpoint_final.pth")
    saved = torch.load(checkpoint, weights_only=False)["network_weights"]
    assert not any(name.startswith("module.") for name in saved)
    (written,) = results.rglob("plans.json")
    assert json.loads(written.read_text())["configurations"]["2d"]["patch_size"] == [CANVAS, CANVAS]
