"""Training lengths as nnU-Net has them: `nnUNetTrainerHRMedSeg_1epoch` ... `nnUNetTrainerHERSeg_250epochs`.

Each is a row of `TRAINER_VARIANTS`; the classes are made from it, so a new length is a new number.
"""

from __future__ import annotations

import torch

from nnunet_hrmedseg.registration.names import EPOCHS, trainer_variant_name
from nnunet_hrmedseg.trainers.trainer import nnUNetTrainerHERSeg, nnUNetTrainerHRMedSeg

__all__ = [trainer_variant_name(base, n) for base in ("nnUNetTrainerHRMedSeg", "nnUNetTrainerHERSeg") for n in EPOCHS]


def _variant(base: type, epochs: int) -> type:
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        base.__init__(self, plans, configuration, fold, dataset_json, device)
        self.num_epochs = epochs

    name = trainer_variant_name(base.__name__, epochs)
    doc = f"{base.__name__} with num_epochs = {epochs}; the learning rate decays as far as in the full recipe."
    return type(name, (base,), {"__init__": __init__, "__module__": __name__, "__qualname__": name, "__doc__": doc})


for _base in (nnUNetTrainerHRMedSeg, nnUNetTrainerHERSeg):
    for _epochs in EPOCHS:
        _class = _variant(_base, _epochs)
        globals()[_class.__name__] = _class
