"""The trainers without mirroring."""

import pytest
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform

from nnunet_hrmedseg.registration.names import TRAINERS
from nnunet_hrmedseg.trainers import hrmedseg, no_mirroring
from tests.trainers.conftest import LABELS
from tests.trainers.tiny_trainers import CPU, _plans

BASES = [name for name, module in TRAINERS.items() if module == "nnunet_hrmedseg.trainers.hrmedseg"]


def _mirrors(cls, description):
    made = cls(_plans(cls.network_name), "2d", 0, description, CPU)
    rotation, dummy_2d, size, axes = made.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    transforms = made.get_training_transforms(size, rotation, None, axes, dummy_2d).transforms
    return any(isinstance(step, MirrorTransform) for step in transforms), made.inference_allowed_mirroring_axes


@pytest.mark.parametrize("base", BASES)
def test_neither_training_nor_prediction_mirrors(dataset, base):
    description = dataset(LABELS)
    assert _mirrors(getattr(hrmedseg, base), description) == (True, (0, 1))
    variant = getattr(no_mirroring, f"{base}NoMirroring")
    assert issubclass(variant, getattr(hrmedseg, base))
    assert _mirrors(variant, description) == (False, None)


def test_every_2d_trainer_has_a_variant_without_mirroring():
    assert sorted(no_mirroring.__all__) == sorted(f"{base}NoMirroring" for base in BASES) and len(BASES) == 4
