"""Trainers on the tiny dataset of conftest.py, with reduced width and without nnU-Net's worker processes."""

import torch

from nnunet_hrmedseg.plans.overrides import hrmedseg_plans
from nnunet_hrmedseg.trainers.hrmedseg import (
    nnUNetTrainerHRMedSeg,
)
from tests.plans.stock_plans import stock_plans

CPU = torch.device("cpu")
CANVAS = 64


def _plans(network="HRMedSeg", **arguments):
    plans = hrmedseg_plans(stock_plans(), num_training_cases=5, network=network)
    configuration = plans["configurations"]["2d"]
    configuration["patch_size"] = [CANVAS, CANVAS]
    configuration["architecture"]["arch_kwargs"].update(depth=4, embed_dim=48, **arguments)
    configuration["encoder_weights"] = "none"
    return {**plans, "continue_training": False}


def _trainer(description, cls=nnUNetTrainerHRMedSeg, fold=0, plans=None):
    trainer = cls(plans or _plans(cls.network_name), "2d", fold, description, CPU)
    trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 3, 1
    return trainer


def _log_of(trainer):
    with open(trainer.log_file) as file:
        return file.read()
