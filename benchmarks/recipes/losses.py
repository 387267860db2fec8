"""nnUNetTrainerHERSegScratch with HRMedSeg's loss: a trainer of ../learning_rate.py, as found by nnU-Net."""

from __future__ import annotations

from nnunet_hrmedseg.trainers.hrmedseg import nnUNetTrainerHERSegScratch
from nnunet_hrmedseg.trainers.losses import dice_and_focal


class nnUNetTrainerHERSegDiceFocal(nnUNetTrainerHERSegScratch):
    """HER-Seg's network with HRMedSeg's loss."""

    build_loss = staticmethod(dice_and_focal)
