"""The 2D trainers without mirroring, in augmentation and in prediction, as nnU-Net's nnUNetTrainerNoMirroring.

For images in which left and right, or top and bottom, are different things.
"""

from __future__ import annotations

from nnunet_hrmedseg.trainers.hrmedseg import (
    nnUNetTrainerHERSeg,
    nnUNetTrainerHERSegScratch,
    nnUNetTrainerHRMedSeg,
    nnUNetTrainerHRMedSegScratch,
)

__all__ = [
    "nnUNetTrainerHERSegNoMirroring",
    "nnUNetTrainerHERSegScratchNoMirroring",
    "nnUNetTrainerHRMedSegNoMirroring",
    "nnUNetTrainerHRMedSegScratchNoMirroring",
]


class nnUNetTrainerHRMedSegNoMirroring(nnUNetTrainerHRMedSeg):
    """HRMedSeg without mirroring."""

    mirroring = False


class nnUNetTrainerHRMedSegScratchNoMirroring(nnUNetTrainerHRMedSegScratch):
    """HRMedSeg from random weights, without mirroring."""

    mirroring = False


class nnUNetTrainerHERSegNoMirroring(nnUNetTrainerHERSeg):
    """HER-Seg without mirroring."""

    mirroring = False


class nnUNetTrainerHERSegScratchNoMirroring(nnUNetTrainerHERSegScratch):
    """HER-Seg from random weights, without mirroring."""

    mirroring = False
