"""The moving average of the weights: its values, and its use in validation, checkpoints and continued trainings."""

from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_hrmedseg.errors import PlanError
from nnunet_hrmedseg.trainers.base import WEIGHT_AVERAGE
from nnunet_hrmedseg.trainers.hrmedseg import nnUNetTrainerHRMedSeg
from nnunet_hrmedseg.trainers.segmaformer import nnUNetTrainerSegMaFormer
from nnunet_hrmedseg.trainers.weight_average import WeightAverage
from tests.trainers.conftest import LABELS
from tests.trainers.tiny_trainers import _trainer


def _network(value=0.0):
    network = nn.BatchNorm1d(1)
    with torch.no_grad():
        network.weight.fill_(value)
    return network


def test_average_by_hand():
    """Decays are 1/10, 2/11, then the given 0.2: 0.9 x 10; 2/11 of this + 9/11 x 20; 0.2 of this + 0.8 x 30."""
    network = _network()
    average = WeightAverage(network, 0.2)
    for value in (10.0, 20.0, 30.0):
        with torch.no_grad():
            network.weight.fill_(value)
            network.running_mean.fill_(2 * value)
            network.num_batches_tracked += 1
        average.update()
    expected = 0.2 * (2 / 11 * 9 + 9 / 11 * 20) + 0.8 * 30
    assert average.average["weight"].item() == pytest.approx(expected)
    assert average.average["running_mean"].item() == pytest.approx(2 * expected)
    assert average.average["num_batches_tracked"].item() == 3 and average.updates == 3
    assert network.weight.item() == 30


def test_apply_and_restore():
    network = _network(1)
    average = WeightAverage(network, 0.9)
    with torch.no_grad():
        network.weight.fill_(2)
    with average.applied():
        assert network.weight.item() == 1
        with average.applied():  # as in a checkpoint saved during validation of the average
            assert network.weight.item() == 1
        assert network.weight.item() == 1
        assert average.state()["trained_weights"]["weight"].item() == 2
    assert network.weight.item() == 2
    average.restore()
    assert network.weight.item() == 2


@pytest.mark.parametrize("decay", [0, 1, 1.5, -0.1])
def test_invalid_decay_is_rejected(decay):
    with pytest.raises(PlanError, match="above 0 and below 1"):
        WeightAverage(_network(), decay)


def _weights(trainer):
    return {name: value.clone() for name, value in trainer.network.state_dict().items()}


def _same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Averaging(nnUNetTrainerHRMedSeg):
    ema_decay = 0.9


def _train(trainer, epochs):
    trainer.num_epochs = epochs
    trainer.run_training()


def _learn(trainer, steps):
    trainer.on_train_epoch_start()
    for _ in range(steps):
        trainer.train_step(next(trainer.dataloader_train))
    trainer.progress.close()


def test_no_average_by_default():
    assert nnUNetTrainerHRMedSeg.ema_decay is None and nnUNetTrainerSegMaFormer.ema_decay is None


def test_average_is_validated_and_training_continues_with_its_own_weights(dataset):
    trainer = _trainer(dataset(LABELS), Averaging)
    trainer.num_epochs = 2
    trainer.on_train_start()
    start = _weights(trainer)
    _learn(trainer, 3)
    trained, average = _weights(trainer), dict(trainer.weight_average.average)
    assert not _same(trained, average) and not _same(start, average)
    trainer.on_validation_epoch_start()
    assert _same(_weights(trainer), average)
    with torch.no_grad():
        outputs = [trainer.validation_step(next(trainer.dataloader_val))]
    trainer.on_epoch_start()
    trainer.on_validation_epoch_end(outputs)
    assert _same(_weights(trainer), trained)


def test_checkpoint_has_the_average_and_what_continues_the_training(dataset):
    description = dataset(LABELS)
    trainer = _trainer(description, Averaging)
    trainer.num_epochs = 2
    trainer.on_train_start()
    _learn(trainer, 3)
    trained = _weights(trainer)
    file = str(Path(trainer.output_folder) / "checkpoint_latest.pth")
    trainer.save_checkpoint(file)
    assert _same(_weights(trainer), trained)
    checkpoint = torch.load(file, weights_only=False)
    assert _same(checkpoint["network_weights"], trainer.weight_average.average)
    trainer.fold_lock.release()  # as at the end of its process

    again = _trainer(description, Averaging)
    again.num_epochs = 2
    again.load_checkpoint(file)
    assert _same(_weights(again), trained)
    assert _same(again.weight_average.average, trainer.weight_average.average)
    again.on_train_start()
    assert again.weight_average.updates == 3

    batch = next(trainer.dataloader_train)
    for one in (trainer, again):  # the same step gives the same weights and the same average in both
        one.current_epoch = 1
        one.on_train_epoch_start()
        torch.manual_seed(0)
        one.train_step({name: value.clone() if name != "keys" else value for name, value in batch.items()})
        one.progress.close()
    assert _same(_weights(again), _weights(trainer))
    assert _same(again.weight_average.average, trainer.weight_average.average)

    plain = _trainer(description)  # prediction and a trainer without an average use the averaged weights
    plain.load_checkpoint(file)
    assert _same(_weights(plain), checkpoint["network_weights"]) and plain.weight_average is None


@pytest.mark.slow
def test_final_validation_and_checkpoint_use_the_average(dataset, monkeypatch):
    trainer = _trainer(dataset(LABELS), Averaging)
    _train(trainer, 1)
    final = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
    average = trainer.weight_average.average
    assert _same(final["network_weights"], average)
    assert not _same(final[WEIGHT_AVERAGE]["trained_weights"], average)
    seen = []
    monkeypatch.setattr(
        nnUNetTrainer, "perform_actual_validation", lambda self, npz: seen.append((_weights(self), npz))
    )
    trainer.perform_actual_validation(True)
    assert _same(seen[0][0], average) and seen[0][1] is True
    assert _same(_weights(trainer), final[WEIGHT_AVERAGE]["trained_weights"])


def test_training_without_an_average_continues_with_one(dataset):
    description = dataset(LABELS)
    trainer = _trainer(description)
    trainer.on_train_start()
    file = str(Path(trainer.output_folder) / "checkpoint_latest.pth")
    trainer.save_checkpoint(file)
    assert WEIGHT_AVERAGE not in torch.load(file, weights_only=False)
    trainer.fold_lock.release()
    again = _trainer(description, Averaging)
    again.load_checkpoint(file)
    assert _same(again.weight_average.average, _weights(trainer)) and again.weight_average.updates == 0
