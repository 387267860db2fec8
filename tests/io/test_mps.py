"""Operations that Apple's GPUs (-device mps) do not support are avoided: double precision and complex numbers.

Types do not depend on the device, so the tests run on the CPU.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_hrmedseg.architectures import HERSeg, HRMedSeg, SegMaFormer
from nnunet_hrmedseg.evaluation.benchmark.networks import nnunet_loss
from nnunet_hrmedseg.trainers.losses import dice_and_cross_entropy, dice_and_focal
from nnunet_hrmedseg.weights.student import Normalize, Student, encoder_architecture

ABSENT = {torch.float64, torch.complex64, torch.complex128}


class NoDoublePrecision(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        found = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        wrong = {tensor.dtype for tensor in found if tensor.ndim} & ABSENT
        assert not wrong, f"{function} works in {wrong}"
        return result


def network(cls, channels, **arguments):
    made = cls(channels, 3, depth=4, embed_dim=48, **arguments)
    made.upsample_in_training = False
    return made


REGIONS = {"regions": True, "ignore_label": 3}
CASES = {
    "HRMedSeg": (lambda: network(HRMedSeg, 3), dice_and_focal(regions=False), (2, 3, 64, 64), 1),
    "HRMedSeg, recompute": (lambda: network(HRMedSeg, 3, recompute=True), dice_and_focal(**REGIONS), (2, 3, 64, 64), 4),
    "HERSeg": (lambda: network(HERSeg, 3), dice_and_cross_entropy(regions=False), (2, 3, 64, 64), 1),
    "SegMaFormer": (lambda: SegMaFormer(1, 3), nnunet_loss(), (1, 1, 64, 64, 64), 1),
    "student": (
        lambda: Student(encoder_architecture()),
        lambda made, _: F.mse_loss(made, made.detach() + 1),
        (1, 3, 64, 64),
        1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_training_and_prediction_in_single_precision(name):
    build, loss, shape, heads = CASES[name]
    trained = build().train()
    optimizer = torch.optim.Adam(trained.parameters(), lr=1e-3)
    target = torch.zeros(shape[0], heads, *shape[2:], dtype=torch.int16)
    with NoDoublePrecision():
        loss(trained(torch.randn(shape)), target).backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 12)
        optimizer.step()
        with torch.no_grad():
            trained.eval()(torch.randn(shape))


@pytest.mark.parametrize("scheme", ["zscore", "mean_std"])
def test_images_are_normalized_in_single_precision(scheme):
    with NoDoublePrecision():
        Normalize(scheme)(torch.rand(1, 3, 8, 8))


def test_double_precision_is_detected():
    with pytest.raises(AssertionError, match="float64"), NoDoublePrecision():
        torch.zeros(3).double()
