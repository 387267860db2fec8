"""Trainers of this package with epochs as in the papers: passes over the training images. Used by ../papers_setting.py.

The environment defines the length of a pass, because trainers create the schedule before they read the training images.
"""

from __future__ import annotations

import os

import torch

from nnunet_hrmedseg.trainers.hrmedseg import (
    nnUNetTrainerHERSeg,
    nnUNetTrainerHERSegScratch,
    nnUNetTrainerHRMedSeg,
    nnUNetTrainerHRMedSegScratch,
)
from nnunet_hrmedseg.trainers.schedule import PaperLRScheduler


class _Passes:
    """Epochs are passes over the training images; test images replace the final validation."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ["PAPERS_SETTING_PASSES"])
        self.num_iterations_per_epoch = int(os.environ["PAPERS_SETTING_ITERATIONS"])

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        pass


class nnUNetTrainerHRMedSegPasses(_Passes, nnUNetTrainerHRMedSeg):
    """HRMedSeg with this package's learning rate."""


class nnUNetTrainerHRMedSegScratchPasses(_Passes, nnUNetTrainerHRMedSegScratch):
    """Like the class before, from random weights."""


class nnUNetTrainerHERSegPasses(_Passes, nnUNetTrainerHERSeg):
    """HER-Seg with this package's learning rate."""


class nnUNetTrainerHERSegScratchPasses(_Passes, nnUNetTrainerHERSegScratch):
    """Like the class before, from random weights."""


class nnUNetTrainerHRMedSegPaperPasses(nnUNetTrainerHRMedSegPasses):
    """HRMedSeg with the paper's learning rate, 1e-4 times 0.98 per pass of 200."""

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-4)
        return optimizer, PaperLRScheduler(optimizer, self.num_epochs)
