"""Training lengths as nnU-Net has them: `nnUNetTrainerHRMedSeg_1epoch` ... `nnUNetTrainerHERSegScratch_250epochs`.

The classes are made from the lengths in `registration.names.EPOCHS`: a new length is a new number there.
"""

from __future__ import annotations

from nnunet_hrmedseg.registration.names import EPOCHS, TRAINERS, trainer_variant_name
from nnunet_hrmedseg.trainers import trainer

__all__ = [trainer_variant_name(base, n) for base in TRAINERS for n in EPOCHS]


def _variant(base: type, epochs: int) -> type:
    name = trainer_variant_name(base.__name__, epochs)
    doc = f"{base.__name__} with num_epochs = {epochs}; the learning rate decays as far as in the full recipe."
    return type(name, (base,), {"recipe_epochs": epochs, "__module__": __name__, "__qualname__": name, "__doc__": doc})


for _base in TRAINERS:
    for _epochs in EPOCHS:
        _class = _variant(getattr(trainer, _base), _epochs)
        globals()[_class.__name__] = _class
