"""Every name that nnU-Net can look up in this package, and the module of its class. Imports nothing."""

from __future__ import annotations

__all__ = [
    "EPOCHS",
    "LOOKUP_PACKAGES",
    "REGISTERED",
    "TRAINERS",
    "trainer_variant_name",
]

EPOCHS = (1, 5, 10, 20, 50, 100, 250)
"""Numbers of epochs for which trainer variants exist."""


def trainer_variant_name(base: str, epochs: int) -> str:
    """Return the name of a variant with another number of epochs, as nnU-Net names them: `_1epoch`, `_5epochs`."""
    return f"{base}_{epochs}epoch{'s' if epochs > 1 else ''}"


LOOKUP_PACKAGES = {
    "trainer": "nnunetv2.training.nnUNetTrainer",
    "planner": "nnunetv2.experiment_planning",
    "preprocessor": "nnunetv2.preprocessing",
    "reader": "nnunetv2.imageio",
}
"""The nnU-Net package in which each kind of name is looked up."""

TRAINERS = {
    "nnUNetTrainerHRMedSeg": "nnunet_hrmedseg.trainers.hrmedseg",
    "nnUNetTrainerHRMedSegScratch": "nnunet_hrmedseg.trainers.hrmedseg",
    "nnUNetTrainerHERSeg": "nnunet_hrmedseg.trainers.hrmedseg",
    "nnUNetTrainerHERSegScratch": "nnunet_hrmedseg.trainers.hrmedseg",
    "nnUNetTrainerHRMedSegNoMirroring": "nnunet_hrmedseg.trainers.no_mirroring",
    "nnUNetTrainerHRMedSegScratchNoMirroring": "nnunet_hrmedseg.trainers.no_mirroring",
    "nnUNetTrainerHERSegNoMirroring": "nnunet_hrmedseg.trainers.no_mirroring",
    "nnUNetTrainerHERSegScratchNoMirroring": "nnunet_hrmedseg.trainers.no_mirroring",
    "nnUNetTrainerHRMedSegPaper": "nnunet_hrmedseg.trainers.paper",
    "nnUNetTrainerSegMaFormer": "nnunet_hrmedseg.trainers.segmaformer",
}

REGISTERED = {
    "trainer": {
        **TRAINERS,
        **{trainer_variant_name(base, n): "nnunet_hrmedseg.trainers.variants" for base in TRAINERS for n in EPOCHS},
    },
    "planner": {
        "nnUNetPlannerHRMedSeg": "nnunet_hrmedseg.plans.planner",
        "nnUNetPlannerSegMaFormer": "nnunet_hrmedseg.plans.planner",
    },
    "preprocessor": {"HRMedSegPreprocessor": "nnunet_hrmedseg.preprocessing.preprocessor"},
    "reader": {"HRMedSegDicomIO": "nnunet_hrmedseg.io.dicom_reader"},
}
"""Kind -> name -> module that defines it."""
