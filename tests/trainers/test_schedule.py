import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from nnunet_hrmedseg.trainers.schedule import (
    LengthAwareLRScheduler,
    PaperLRScheduler,
    WarmupCosineLRScheduler,
    WarmupPolyLRScheduler,
)


def _optimizer(*lrs):
    return torch.optim.Adam([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs])


def test_200_epochs_follow_the_schedule_of_the_paper():
    optimizer = _optimizer(1e-3)
    scheduler = PaperLRScheduler(optimizer, num_epochs=200)
    for epoch in (0, 1, 50, 199):
        scheduler.step(epoch)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.98**epoch)


@pytest.mark.parametrize("epochs", [1, 10, 250])
def test_any_length_ends_at_the_same_learning_rate(epochs):
    optimizer = _optimizer(1e-3)
    scheduler = PaperLRScheduler(optimizer, num_epochs=epochs)
    scheduler.step(epochs)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.98**200)


@pytest.mark.parametrize("epochs", [1, 200])
def test_polynomial_equals_that_of_nnunet(epochs):
    ours, theirs = _optimizer(1e-3), _optimizer(1e-3)
    scheduler, stock = WarmupPolyLRScheduler(ours, epochs), PolyLRScheduler(theirs, 1e-3, epochs)
    for part in (0, 0.1, 0.5, 0.99, 1):
        scheduler.step(part * epochs)
        stock.step(part * epochs)
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"])


def test_warm_up_is_linear_and_joins_the_schedule():
    optimizer = _optimizer(1e-3)
    scheduler = WarmupPolyLRScheduler(optimizer, num_epochs=1, warmup_epochs=0.1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)
    rates = []
    for step in range(100):
        scheduler.step(step / 100)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[10] == pytest.approx(1e-3 * 0.9**0.9)


def test_groups_keep_their_ratio_and_report_it():
    optimizer = _optimizer(1e-3, 1e-4)
    scheduler = WarmupPolyLRScheduler(optimizer, num_epochs=10)
    scheduler.step(3.5)
    first, second = scheduler.get_last_lr()
    assert first == pytest.approx(10 * second)
    assert scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups]


def _parts_behind_the_encoder(lengths_of_epochs):
    """Return the ratio of the rates of neck and decoder to that of the encoder, at every iteration."""
    encoder, behind = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    groups = [{"params": [encoder], "decoder": False}, {"params": [behind], "decoder": True}]
    optimizer = torch.optim.Adam(groups, lr=1e-3)
    epochs = len(lengths_of_epochs)
    scheduler = LengthAwareLRScheduler(optimizer, epochs)
    parts = []
    for epoch, iterations in enumerate(lengths_of_epochs):
        for iteration in range(iterations):
            now = epoch + iteration / iterations
            scheduler.step(now)
            fast, slow = (group["lr"] for group in optimizer.param_groups)
            assert fast == pytest.approx(1e-3 * (1 - now / epochs) ** 0.9)
            assert scheduler.get_last_lr() == [fast, slow]
            parts.append(slow / fast)
            encoder.grad = behind.grad = torch.ones(1)
            optimizer.step()
    return parts


@pytest.mark.parametrize(
    ("lengths", "part"),
    [([5] * 10, 1.0), ([50] * 3, 1.0), ([100] * 6, 0.25), ([250] * 4, 0.15), ([1500], 0.1), ([250] * 20, 0.1)],
)
def test_longer_trainings_have_lower_rates_behind_the_encoder(lengths, part):
    parts = _parts_behind_the_encoder(lengths)
    assert parts[0] == pytest.approx(0.1)  # the length is unknown before the first step
    assert parts[1:] == pytest.approx([part] * (len(parts) - 1))


def test_estimated_length_is_updated_during_training():
    """In a training with a time limit, epochs have as many iterations as fit."""
    parts = _parts_behind_the_encoder([20] + [6] * 19)
    assert parts[1:21] == pytest.approx([150 / 400] * 20)
    assert parts[20:] == sorted(parts[20:])
    assert parts[-1] == 1.0


def test_unnamed_groups_have_the_full_rate():
    optimizer = _optimizer(1e-3)
    scheduler = LengthAwareLRScheduler(optimizer, num_epochs=10)
    scheduler.step(5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.5**0.9)


@pytest.mark.parametrize("epochs", [1, 1000])
def test_segmaformer_uses_warm_up_and_cosine(epochs):
    optimizer = _optimizer(3e-4)
    scheduler = WarmupCosineLRScheduler(optimizer, epochs, warmup_epochs=0.02 * epochs, final_lr=1e-6)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(3e-6)
    rates = []
    for part in (0.01, 0.02, 0.51, 1.0):
        scheduler.step(part * epochs)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.505 * 3e-4, 3e-4, (3e-4 + 1e-6) / 2, 1e-6])
