import pytest
import torch
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nnunet_hrmedseg.trainers.losses import DiceAndFocalLoss, focal_loss


def _labels(ignore=False):
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (2, 1, 8, 10), generator=generator)
    if ignore:
        target[:, :, :, 6:] = 3
    return torch.randn(2, 3, 8, 10, generator=generator, requires_grad=True), target


def _regions(ignore=False):
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 2, (2, 2, 8, 10), generator=generator)
    if ignore:
        mask = torch.zeros(2, 1, 8, 10, dtype=target.dtype)
        mask[:, :, :, 6:] = 1
        target = torch.cat([target, mask], 1)
    return torch.randn(2, 2, 8, 10, generator=generator, requires_grad=True), target


def test_focal_loss_is_the_papers_formula():
    p = torch.tensor([0.1, 0.5, 0.9, 0.999])
    expected = -0.8 * (1 - p) ** 2 * p.log()
    torch.testing.assert_close(focal_loss(-p.log(), alpha=0.8, gamma=2), expected)


def test_gamma_zero_is_cross_entropy():
    logits, target = _labels()
    loss = DiceAndFocalLoss(regions=False, weight_dice=0, weight_focal=1, alpha=1, gamma=0)
    torch.testing.assert_close(loss(logits, target), torch.nn.functional.cross_entropy(logits, target[:, 0]))


def test_focal_weight_zero_is_nnunets_dice():
    logits, target = _labels()
    loss = DiceAndFocalLoss(regions=False, weight_dice=1, weight_focal=0)
    dice = MemoryEfficientSoftDiceLoss(lambda x: x.softmax(1), batch_dice=True, do_bg=False, smooth=1e-5, ddp=False)
    torch.testing.assert_close(loss(logits, target), dice(logits, target))


@pytest.mark.parametrize("make, regions", [(_labels, False), (_regions, True)], ids=["labels", "regions"])
def test_ignored_pixels_have_neither_loss_nor_gradient(make, regions):
    logits, target = make(ignore=True)
    loss = DiceAndFocalLoss(regions=regions, ignore_label=3)
    value = loss(logits, target)
    value.backward()
    assert logits.grad[..., 6:].abs().max() == 0
    assert logits.grad[..., :6].abs().min() > 0
    # the same as on the annotated part alone
    cut = target[:, :-1] if regions else target
    alone = DiceAndFocalLoss(regions=regions)(logits[..., :6], cut[..., :6])
    torch.testing.assert_close(value, alone)


@pytest.mark.parametrize("make, regions", [(_labels, False), (_regions, True)], ids=["labels", "regions"])
def test_nothing_annotated_is_finite(make, regions):
    logits, target = make(ignore=True)
    target[:, -1:] = 1 if regions else 3
    value = DiceAndFocalLoss(regions=regions, ignore_label=3)(logits, target)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("make, regions", [(_labels, False), (_regions, True)], ids=["labels", "regions"])
def test_a_perfect_prediction_is_best(make, regions):
    logits, target = make()
    if regions:
        perfect = (target * 2 - 1) * 20.0
    else:
        perfect = torch.nn.functional.one_hot(target[:, 0], 3).permute(0, 3, 1, 2) * 20.0
    loss = DiceAndFocalLoss(regions=regions)
    assert loss(perfect, target) < -0.79 < loss(logits, target)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits(dtype):
    logits, target = _labels()
    loss = DiceAndFocalLoss(regions=False)
    torch.testing.assert_close(loss(logits.to(dtype), target).float(), loss(logits, target), atol=2e-2, rtol=2e-2)


def test_extreme_logits_stay_finite():
    logits, target = _labels()
    extreme = (logits.detach() * 1e4).requires_grad_()
    value = DiceAndFocalLoss(regions=False)(extreme, target)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(extreme.grad).all()
