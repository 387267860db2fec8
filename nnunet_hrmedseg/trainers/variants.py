"""Variants of all trainers by number of epochs: `nnUNetTrainerHRMedSeg_1epoch`, `nnUNetTrainerSegMaFormer_250epochs`.

The classes are created from the numbers in `registration.names.EPOCHS`; a new number there adds variants.
"""

from __future__ import annotations

from importlib import import_module

from nnunet_hrmedseg.registration.names import EPOCHS, TRAINERS, trainer_variant_name

__all__ = [trainer_variant_name(base, n) for base in TRAINERS for n in EPOCHS]


def _variant(base: type, epochs: int) -> type:
    name = trainer_variant_name(base.__name__, epochs)
    doc = f"{base.__name__} with num_epochs = {epochs}; the learning rate covers the same range as in the full recipe."
    return type(name, (base,), {"recipe_epochs": epochs, "__module__": __name__, "__qualname__": name, "__doc__": doc})


for _base, _module in TRAINERS.items():
    for _epochs in EPOCHS:
        _class = _variant(getattr(import_module(_module), _base), _epochs)
        globals()[_class.__name__] = _class
