"""Our trainers in the papers' measure of time: passes over the training images. Used by ../papers_setting.py.

The environment says how long a pass is, because a trainer does not know its images before its learning rate is made.
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
    """An epoch is a pass over the training images; without the validation at the end, as test images are predicted."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ["PAPERS_SETTING_PASSES"])
        self.num_iterations_per_epoch = int(os.environ["PAPERS_SETTING_ITERATIONS"])

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        pass


class nnUNetTrainerHRMedSegPasses(_Passes, nnUNetTrainerHRMedSeg):
    """HRMedSeg with this package's learning rate."""


class nnUNetTrainerHRMedSegScratchPasses(_Passes, nnUNetTrainerHRMedSegScratch):
    """The same from random weights."""


class nnUNetTrainerHERSegPasses(_Passes, nnUNetTrainerHERSeg):
    """HER-Seg with this package's learning rate."""


class nnUNetTrainerHERSegScratchPasses(_Passes, nnUNetTrainerHERSegScratch):
    """The same from random weights."""


class nnUNetTrainerHRMedSegPaperPasses(nnUNetTrainerHRMedSegPasses):
    """HRMedSeg with the paper's learning rate, 1e-4 times 0.98 per pass of 200."""

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-4)
        return optimizer, PaperLRScheduler(optimizer, self.num_epochs)
