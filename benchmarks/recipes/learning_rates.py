"""nnUNetTrainerHRMedSegScratch with other learning rates: the rows of ../learning_rate.py. nnU-Net finds them here."""

from __future__ import annotations

from torch.optim import Adam

from nnunet_hrmedseg.trainers.schedule import PaperLRScheduler, WarmupPolyLRScheduler
from nnunet_hrmedseg.trainers.trainer import nnUNetTrainerHRMedSegScratch


class nnUNetTrainerHRMedSegPaperDecay5e4(nnUNetTrainerHRMedSegScratch):
    """x 0.98 per epoch of 200, stretched over the training, as in the papers."""

    scheduler: type = PaperLRScheduler
    learning_rate = 5e-4

    def configure_optimizers(self):
        self.initial_lr = self.learning_rate
        optimizer = Adam(self.network.parameters(), lr=self.learning_rate)
        return optimizer, self.scheduler(
            optimizer, self.num_epochs, self.warmup_iterations / self.num_iterations_per_epoch
        )


class nnUNetTrainerHRMedSegPoly1e3(nnUNetTrainerHRMedSegPaperDecay5e4):
    """nnU-Net's polynomial, from 1e-3."""

    scheduler = WarmupPolyLRScheduler
    learning_rate = 1e-3


class nnUNetTrainerHRMedSegPoly2e3(nnUNetTrainerHRMedSegPoly1e3):
    """nnU-Net's polynomial, from 2e-3."""

    learning_rate = 2e-3
