"""The losses in strips, compared with nnU-Net's losses and the plain formulas."""

import time

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import distributed, multiprocessing
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from nnunet_hrmedseg.trainers import losses
from nnunet_hrmedseg.trainers.losses import MAX_STRIPS, dice_and_cross_entropy, dice_and_focal, focal_loss


def _labels(ignore=False, size=(8, 10), factor=1):
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (2, 1, size[0] * factor, size[1] * factor), generator=generator)
    if ignore:
        target[:, :, :, 6 * factor :] = 3
    return torch.randn(2, 3, *size, generator=generator, requires_grad=True), target


def _regions(ignore=False, size=(8, 10), factor=1):
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 2, (2, 2, size[0] * factor, size[1] * factor), generator=generator)
    if ignore:
        mask = torch.zeros_like(target[:, :1])
        mask[:, :, :, 6 * factor :] = 1
        target = torch.cat([target, mask], 1)
    return torch.randn(2, 2, *size, generator=generator, requires_grad=True), target


@pytest.mark.parametrize("recompute, expected", [(True, [2, 4, 8, 16]), (False, [1, 1, 2, 16])])
def test_strips_are_few_for_small_batches_and_at_most_sixteen(recompute, expected):
    size = dice_and_focal(regions=False, recompute=recompute).logits_in_a_strip
    sizes = ((1, 1), (1, 2), (2, 2), (16, 14))
    assert [len(losses.strips(torch.zeros(b, k, 256, 256), 4, size)) for b, k in sizes] == expected


@pytest.mark.parametrize("recompute", [True, False])
def test_strips_grow_with_the_batch_on_a_gpu(recompute):
    """On a GPU, each strip adds kernel launches, and larger strips fit into the memory."""
    loss = dice_and_focal(regions=False, recompute=recompute)
    sizes = ((1, 2), (2, 2), (16, 2), (16, 14), (16, 50))
    outputs = [torch.zeros(b, k, 256, 256, device="meta") for b, k in sizes]
    numbers = [len(losses.strips(output, 4, loss.strip_size(output, 4))) for output in outputs]
    assert numbers == [2 if recompute else 1, 2, 2, 14, 16]


KINDS = pytest.mark.parametrize("make, regions", [(_labels, False), (_regions, True)], ids=["labels", "regions"])


def test_focal_loss_equals_the_formula_of_the_paper():
    p = torch.tensor([0.1, 0.5, 0.9, 0.999])
    expected = -0.8 * (1 - p) ** 2 * p.log()
    torch.testing.assert_close(focal_loss(-p.log()), expected)


def test_gamma_zero_is_cross_entropy():
    logits, target = _labels()
    loss = dice_and_focal(regions=False, weight_dice=0, weight_pixel=1, alpha=1, gamma=0)
    torch.testing.assert_close(loss(logits, target), F.cross_entropy(logits, target[:, 0]))


@KINDS
def test_parts_have_the_published_weights(make, regions):
    logits, target = make()
    if regions:
        probability, truth, counted = logits.sigmoid(), target, [0, 1]
        p_true = torch.where(truth == 1, probability, 1 - probability)
    else:
        probability, truth, counted = logits.softmax(1), F.one_hot(target[:, 0], 3).movedim(-1, 1), [1, 2]
        p_true = probability.gather(1, target)
    parts = [
        (2 * (probability[:, k] * truth[:, k]).sum() + 1e-5) / (probability[:, k].sum() + truth[:, k].sum() + 1e-5)
        for k in counted
    ]
    dice = sum(parts) / 2
    cross_entropy = -p_true.log()
    focal = 0.8 * (1 - p_true) ** 2 * cross_entropy
    torch.testing.assert_close(dice_and_focal(regions=regions)(logits, target), -0.8 * dice + 0.2 * focal.mean())
    torch.testing.assert_close(dice_and_cross_entropy(regions=regions)(logits, target), -dice + cross_entropy.mean())


@pytest.mark.parametrize("batch_dice", [True, False])
@KINDS
def test_dice_alone_equals_nnunets(make, regions, batch_dice):
    logits, target = make()
    loss = dice_and_focal(regions=regions, batch_dice=batch_dice, weight_dice=1, weight_pixel=0)
    apply_nonlin = torch.sigmoid if regions else lambda x: x.softmax(1)
    dice = MemoryEfficientSoftDiceLoss(apply_nonlin, batch_dice=batch_dice, do_bg=regions, smooth=1e-5, ddp=False)
    torch.testing.assert_close(loss(logits, target), dice(logits, target))


@pytest.mark.parametrize("ignore", [False, True], ids=["", "ignore label"])
def test_dice_and_cross_entropy_equals_nnunets(ignore):
    logits, target = _labels(ignore)
    options = {"batch_dice": True, "smooth": 1e-5, "ddp": False, "do_bg": False}
    label = 3 if ignore else None
    theirs = DC_and_CE_loss(options, {}, ignore_label=label, dice_class=MemoryEfficientSoftDiceLoss)
    _same_value_and_gradient(dice_and_cross_entropy(regions=False, ignore_label=label), theirs, logits, target)


def test_dice_and_binary_cross_entropy_equals_nnunets():
    logits, target = _regions()
    options = {"batch_dice": True, "smooth": 1e-5, "ddp": False, "do_bg": True}
    theirs = DC_and_BCE_loss({}, options, dice_class=MemoryEfficientSoftDiceLoss)
    _same_value_and_gradient(dice_and_cross_entropy(regions=True), theirs, logits, target)


def _same_value_and_gradient(loss, expected, logits, target):
    mine, theirs = loss(logits, target), expected(logits, target)
    torch.testing.assert_close(mine, theirs)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (mine, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("size", [(1, 3), (3, 5), (16, 4), (17, 6), (40, 8), (64, 2)], ids=str)
@pytest.mark.parametrize("ignore", [False, True], ids=["", "ignore label"])
@pytest.mark.parametrize("factor", [2, 4])
@KINDS
def test_upsampling_in_strips_equals_upsampling_at_once(make, regions, factor, ignore, size):
    logits, target = make(ignore, size, factor)
    loss = dice_and_focal(regions=regions, ignore_label=3 if ignore else None)
    loss.logits_in_a_strip = 50

    def whole(logits, target):
        return loss(F.interpolate(logits, size=target.shape[2:], mode="bilinear", align_corners=False), target)

    _same_value_and_gradient(loss, whole, logits, target)


@KINDS
@pytest.mark.parametrize("logits_in_a_strip", [1, 2**30])
def test_no_maps_at_full_resolution_are_kept(make, regions, logits_in_a_strip):
    logits, target = make(size=(64, 64), factor=4)
    loss = dice_and_focal(regions=regions)
    loss.logits_in_a_strip = logits_in_a_strip
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(logits, target)
    kept.pop(target.untyped_storage()._cdata, None)
    at_quarter = logits.numel() * 4
    # the logits themselves, cut into strips with a row of each neighbor, and a few sums
    assert sum(kept.values()) < at_quarter * (1 + 2 * MAX_STRIPS / 64) + 4000


@KINDS
def test_ignored_pixels_have_neither_loss_nor_gradient(make, regions):
    logits, target = make(ignore=True)
    loss = dice_and_focal(regions=regions, ignore_label=3)
    value = loss(logits, target)
    value.backward()
    assert logits.grad[..., 6:].abs().max() == 0
    assert logits.grad[..., :6].abs().min() > 0
    # equal to the loss of the annotated part
    cut = target[:, :-1] if regions else target
    alone = dice_and_focal(regions=regions)(logits[..., :6], cut[..., :6])
    torch.testing.assert_close(value, alone)


@KINDS
def test_loss_without_annotation_is_finite(make, regions):
    logits, target = make(ignore=True)
    target[:, -1:] = 1 if regions else 3
    value = dice_and_focal(regions=regions, ignore_label=3)(logits, target)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(logits.grad).all()


@KINDS
def test_perfect_prediction_has_the_lowest_loss(make, regions):
    logits, target = make()
    if regions:
        perfect = (target * 2 - 1) * 20.0
    else:
        perfect = F.one_hot(target[:, 0], 3).permute(0, 3, 1, 2) * 20.0
    loss = dice_and_focal(regions=regions)
    assert loss(perfect, target) < -0.79 < loss(logits, target)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_supported(dtype):
    logits, target = _labels()
    loss = dice_and_focal(regions=False)
    torch.testing.assert_close(loss(logits.to(dtype), target), loss(logits, target), atol=2e-2, rtol=2e-2)


def test_extreme_logits_stay_finite():
    logits, target = _labels()
    extreme = (logits.detach() * 1e4).requires_grad_()
    value = dice_and_focal(regions=False)(extreme, target)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(extreme.grad).all()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager_decomp_partition"])
@KINDS
def test_strips_of_different_heights_can_be_compiled(make, regions, backend):
    """The first and the last strip have one neighbor, the others have two."""
    logits, target = make(size=(12, 4), factor=4)
    loss = dice_and_focal(regions=regions)
    loss.logits_in_a_strip = logits.numel() * 16 // 6
    expected = _value_and_gradient(loss, logits, target)
    torch._dynamo.reset()
    loss.evaluate_strip = torch.compile(loss.evaluate_strip, backend=backend)
    for _ in range(2):  # the first call compiles graphs, the second reuses them
        torch.testing.assert_close(_value_and_gradient(loss, logits, target), expected)


@pytest.mark.slow
@pytest.mark.parametrize("rows, logits_in_a_strip", [(64, 1), (64, 64 * 4 * 3 * 16), (30, 1)])
def test_strips_are_compiled_to_few_graphs(rows, logits_in_a_strip):
    """Graphs of the first strip, inner strips, the last strip, which may be lower, and a whole image."""
    logits, target = _labels(size=(rows, 4), factor=4)
    loss = dice_and_focal(regions=False)
    loss.logits_in_a_strip = logits_in_a_strip
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    loss.evaluate_strip = torch.compile(loss.evaluate_strip, backend=counter)
    for _ in range(2):
        loss(logits, target).backward()
    assert 1 <= counter.frame_count <= 4


# ---- several processes -----------------------------------------------------------------------------------------------


def _value_and_gradient(loss, logits, target):
    value = loss(logits, target)
    return value.detach(), torch.autograd.grad(value, logits)[0]


def _both(regions, ddp):
    """Return our Dice and cross entropy, and nnU-Net's."""
    dice = {"batch_dice": True, "smooth": 1e-5, "ddp": ddp, "do_bg": regions}
    if regions:
        theirs = DC_and_BCE_loss({}, dice, dice_class=MemoryEfficientSoftDiceLoss)
    else:
        theirs = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
    return dice_and_cross_entropy(regions=regions, ddp=ddp), theirs


SHARES = {"even": [slice(0, 1), slice(1, 2)], "uneven": [slice(0, 3), slice(3, 5)]}
"""Images of either process; nnU-Net shares an odd batch out unevenly."""


def _all_losses():
    """Return (loss without ddp, with ddp, batch) of each kind in nnU-Net: regions, ignore label, batch Dice."""
    for make, regions in ((_labels, False), (_regions, True)):
        for ignore in (False, True):
            for batch_dice in (True, False):
                options = {"regions": regions, "ignore_label": 3 if ignore else None, "batch_dice": batch_dice}
                batch = _batch_of_five(make, ignore)
                yield dice_and_focal(**options), dice_and_focal(**options, ddp=True), batch


def _batch_of_five(make, ignore):
    (logits, target), (more, of_more) = make(ignore), make(ignore, size=(8, 20))
    logits = torch.cat([logits, more[..., :10], more[:1, ..., 10:]]).detach().requires_grad_()
    return logits, torch.cat([target, of_more[..., :10], of_more[:1, ..., 10:]])


def _share_of_two(rank, folder):
    """Run one of two processes."""
    torch.set_num_threads(1)
    group = (folder / "group").as_uri()
    distributed.init_process_group("gloo", init_method=group, rank=rank, world_size=2)
    results = []
    for make, regions in ((_labels, False), (_regions, True)):
        logits, target = (tensor[SHARES["even"][rank]] for tensor in make())
        results.append([_value_and_gradient(loss, logits, target) for loss in _both(regions, ddp=True)])
    uneven = []
    for _, loss, (logits, target) in _all_losses():
        share = SHARES["uneven"][rank]
        with torch.no_grad():
            validated, _ = loss.with_counts(logits[share], target[share])
        uneven.append((*_value_and_gradient(loss, logits[share], target[share]), validated))
    torch.save((results, uneven), folder / f"{rank}.pt")
    distributed.destroy_process_group()


@KINDS
def test_gathered_tensors_are_contiguous(make, regions, monkeypatch):
    """NCCL, which GPUs use, rejects other tensors."""

    class Gather:
        @staticmethod
        def apply(sums):
            assert sums.is_contiguous()
            return torch.stack([sums, sums])

    monkeypatch.setattr(losses, "AllGatherGrad", Gather)
    logits, target = make()
    loss = dice_and_focal(regions=regions, ddp=True)
    torch.testing.assert_close(loss(logits, target), dice_and_focal(regions=regions)(logits, target))


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    """Return the results of two processes: with one image each, and with three and two images."""
    folder = tmp_path_factory.mktemp("processes")
    processes = multiprocessing.spawn(_share_of_two, (folder,), nprocs=2, join=False, daemon=True)
    deadline = time.monotonic() + 300
    while not processes.join(timeout=10):
        assert time.monotonic() < deadline, "the two processes wait for each other"
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
def test_two_processes_have_the_dice_of_the_whole_batch(of_two_processes):
    """As in nnU-Net, each process has the sum of all gradients; their average is that of the whole batch."""
    results = [even for even, _ in of_two_processes]
    for (make, regions), *of_ranks in zip(((_labels, False), (_regions, True)), *results, strict=True):
        for mine, theirs in of_ranks:
            torch.testing.assert_close(mine, theirs)
        _assert_mean_is_that_of_one(_both(regions, ddp=False)[0], make(), [mine for mine, _ in of_ranks])


@pytest.mark.slow
def test_processes_with_three_and_two_images_have_the_loss_of_all_five(of_two_processes):
    found = zip(*(uneven for _, uneven in of_two_processes), strict=True)
    kinds = list(_all_losses())
    for (loss, _, batch), of_ranks in zip(kinds, found, strict=True):
        assert [len(gradient) for _, gradient, _ in of_ranks] == [3, 2] and len(batch[0]) == 5
        _assert_mean_is_that_of_one(loss, batch, [(value, gradient) for value, gradient, _ in of_ranks])
        for value, _, validated in of_ranks:
            torch.testing.assert_close(validated, value)
    assert len(kinds) == 8


def _assert_mean_is_that_of_one(loss, batch, of_ranks):
    value, gradient = _value_and_gradient(loss, *batch)
    values, gradients = zip(*of_ranks, strict=True)
    torch.testing.assert_close(sum(values) / 2, value)
    torch.testing.assert_close(torch.cat(gradients) / 2, gradient)
