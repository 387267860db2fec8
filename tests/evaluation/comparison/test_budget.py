"""Trainings of a given length, with a clock that is advanced only by their steps."""

import errno
import inspect
import json
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import LocalLogger, MetaLogger
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_hrmedseg.errors import CheckpointError, PlanError, SetupError
from nnunet_hrmedseg.evaluation.comparison import budget
from nnunet_hrmedseg.evaluation.comparison.budget import BUDGET_FILE, with_budget
from nnunet_hrmedseg.trainers.hrmedseg import nnUNetTrainerHRMedSeg
from nnunet_hrmedseg.trainers.schedule import WARMUP_START


class Clock:
    """A clock that is advanced explicitly."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(budget, "monotonic", clock)
    monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda self, folder: None)
    return clock


class Fake(nnUNetTrainer):
    """nnU-Net's training loop with steps that only advance the clock.

    `speed` gives the seconds of each training iteration in turn, `stops_after` the epoch after which it is killed.
    """

    def __init__(self, folder, clock, speed, stops_after=None, validation=0.3, checkpoint=1.0):
        self.clock, self.speed, self.stops_after = clock, iter(speed), stops_after
        self.validation, self.checkpoint = validation, checkpoint
        self.output_folder = self.output_folder_base = str(folder)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1000, 250, 50
        self.current_epoch, self.save_every, self.was_initialized = 0, 50, False
        self.is_ddp, self.local_rank, self.disable_checkpointing = False, 0, False
        self.dataloader_train, self.dataloader_val = repeat({}), repeat({})
        self.device = torch.device("cpu")
        self._best_ema = None
        self.logger = MetaLogger(self.output_folder, False)
        self.network = torch.nn.Linear(1, 1)
        self.logged, self.rates, self.trained, self.validated = [], [], [], []

    def initialize(self):
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        self.was_initialized = True

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.network.parameters(), 0.01)
        return optimizer, PolyLRScheduler(optimizer, 0.01, self.num_epochs)

    def on_train_start(self):
        if not self.was_initialized:
            self.initialize()
        self.clock.advance(500)  # unpacking does not count as training

    def train_step(self, batch):
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        self.clock.advance(next(self.speed))
        return {"loss": np.float32(1)}

    def validation_step(self, batch):
        self.clock.advance(self.validation)
        return {"loss": np.float32(1), **{name: np.ones(1) for name in ("tp_hard", "fp_hard", "fn_hard")}}

    def on_validation_epoch_end(self, outputs):
        self.trained.append(self.num_iterations_per_epoch)
        self.validated.append(len(outputs))
        super().on_validation_epoch_end(outputs)

    def on_epoch_end(self):
        super().on_epoch_end()
        if self.current_epoch == self.stops_after:
            raise KeyboardInterrupt

    def save_checkpoint(self, filename):
        self.clock.advance(self.checkpoint)
        torch.save({"epoch": self.current_epoch + 1, "logging": self.logger.get_checkpoint()}, filename)

    def load_checkpoint(self, filename):
        self.initialize()
        checkpoint = torch.load(filename, weights_only=False)
        self.current_epoch = checkpoint["epoch"]
        self.logger.load_checkpoint(checkpoint["logging"])

    def print_to_log_file(self, *texts, **_):
        self.logged.append(" ".join(map(str, texts)))


def record(folder):
    return json.loads((folder / BUDGET_FILE).read_text())


@pytest.mark.parametrize("given", [{}, {"epochs": 3, "minutes": 2.0}])
def test_budget_is_either_epochs_or_minutes(given):
    with pytest.raises(PlanError, match="give one of the two"):
        with_budget(nnUNetTrainer, **given)


@pytest.mark.parametrize(
    "given", [{"epochs": 0}, {"epochs": -3}, {"minutes": 0}, {"minutes": -1.5}, {"minutes": float("nan")}]
)
def test_budget_is_positive(given):
    (value,) = given.values()
    with pytest.raises(PlanError, match=f"{value} .*: give"):
        with_budget(nnUNetTrainer, **given)


@pytest.mark.parametrize("base", [nnUNetTrainer, nnUNetTrainerHRMedSeg])
def test_class_looks_like_its_base_to_nnunet(base):
    made = with_budget(base, minutes=10)
    assert made.__name__ == base.__name__ and made.__module__ == base.__module__
    assert issubclass(made, base) and made is not base
    assert inspect.signature(made.__init__) == inspect.signature(base.__init__)
    assert "__init__" not in made.__dict__


def test_budget_in_epochs(tmp_path, clock):
    trainer = with_budget(Fake, epochs=4)(tmp_path, clock, repeat(0.1))
    trainer.run_training()
    assert trainer.trained == [250] * 4 and trainer.validated == [50] * 4
    assert sorted(set(trainer.rates), reverse=True) == pytest.approx([0.01 * (1 - e / 4) ** 0.9 for e in range(4)])
    saved = record(tmp_path)
    assert saved["epochs"] == 4 and saved["minutes"] is None
    assert saved["iterations"] == 1000
    # iterations, validation, and all checkpoints except the final one: three and the best
    assert saved["training_seconds"] == pytest.approx(1000 * 0.1 + 200 * 0.3 + 4)
    assert "4 epochs" in trainer.logged[0]
    assert "2.73 minutes: 1000 iterations in 4 epochs" in trainer.logged[-1]


@pytest.mark.parametrize("minutes", [1, 10, 60])
@pytest.mark.parametrize("seconds", [0.02, 0.4])
def test_budget_in_minutes(tmp_path, clock, minutes, seconds):
    trainer = with_budget(Fake, minutes=minutes)(tmp_path, clock, repeat(seconds), validation=seconds / 3)
    trainer.run_training()
    saved = record(tmp_path)
    assert 60 * minutes * 0.97 < saved["training_seconds"] < 60 * minutes * 1.01
    assert saved["iterations"] == len(trainer.rates) == sum(trainer.trained)
    assert saved["minutes"] == minutes and saved["epochs"] is None
    epochs = trainer.num_epochs
    assert trainer.trained[0] == 2 and len(trainer.trained) == epochs
    assert trainer.rates[-1] == pytest.approx(0.01 * (1 / epochs) ** 0.9)
    assert max(trainer.validated) <= 50
    assert all(v == 1 or 5 * v <= n for v, n in zip(trainer.validated, trainer.trained, strict=True))
    # equally many once the speed is known
    assert max(trainer.trained[4:-1], default=0) <= 1.1 * min(trainer.trained[4:-1], default=0)
    assert f"{minutes} minute" in trainer.logged[0]
    assert f"minutes: {saved['iterations']} iterations in {epochs} epochs" in trainer.logged[-1]


@pytest.mark.parametrize("minutes, epochs", [(0.1, 5), (2, 5), (5, 10), (10, 20), (25, 50), (600, 50)])
def test_number_of_epochs_follows_from_the_minutes(minutes, epochs):
    assert with_budget(nnUNetTrainer, minutes=minutes).budget.num_epochs == epochs


def test_slow_first_iterations_do_not_determine_the_speed(tmp_path, clock):
    trainer = with_budget(Fake, minutes=10)(tmp_path, clock, chain([60.0], repeat(0.1)))
    trainer.run_training()
    assert record(tmp_path)["training_seconds"] == pytest.approx(600, rel=0.02)
    assert trainer.trained[1] < 5 and min(trainer.trained[4:]) > 150


def test_prefetched_batches_do_not_determine_the_speed(tmp_path, clock):
    trainer = with_budget(Fake, minutes=5)(tmp_path, clock, chain(repeat(0.01, 8), repeat(0.5)))
    trainer.run_training()
    assert trainer.trained[1] == 20
    assert record(tmp_path)["training_seconds"] == pytest.approx(300, rel=0.02)


@pytest.mark.parametrize("factor", [0.25, 4])
def test_budget_is_kept_if_the_speed_changes_halfway(tmp_path, clock, factor):
    def speed():
        start = clock.now
        while True:
            yield 0.2 if clock.now < start + 300 else 0.2 * factor

    trainer = with_budget(Fake, minutes=10)(tmp_path, clock, speed())
    trainer.run_training()
    assert record(tmp_path)["training_seconds"] == pytest.approx(600, rel=0.02)


@pytest.mark.parametrize("seconds, trained", [(20.0, [2, 1, 1]), (30.0, [2, 1]), (70.0, [2])])
def test_epochs_without_time_for_an_iteration_are_dropped(tmp_path, clock, seconds, trained):
    trainer = with_budget(Fake, minutes=2)(tmp_path, clock, repeat(seconds), validation=seconds / 3)
    trainer.run_training()
    assert trainer.trained == trained
    assert trainer.num_epochs == record(tmp_path)["num_epochs"] == len(trained)
    assert trainer.rates[-1] == pytest.approx(0.01 * (1 / len(trained)) ** 0.9)  # the schedule is complete nevertheless
    assert record(tmp_path)["training_seconds"] < max(130 + seconds / 3, 2.5 * seconds)
    assert f"{len(trained)} epochs fit into the budget" in " ".join(trainer.logged)
    assert "The budget was 2 minutes" in trainer.logged[-1]
    assert (tmp_path / "checkpoint_final.pth").is_file()


def test_optimizer_state_is_kept_with_fewer_epochs(tmp_path, clock):
    trainer = with_budget(Fake, minutes=2)(tmp_path, clock, repeat(20.0))
    trainer.initialize()
    trainer.optimizer.state[trainer.network.weight]["momentum_buffer"] = torch.tensor([[7.0]])
    trainer.run_training()
    assert trainer.num_epochs < 5
    assert trainer.optimizer.state[trainer.network.weight]["momentum_buffer"].item() == 7


def test_continued_training_keeps_the_number_of_epochs(tmp_path, clock):
    trainer = killed_and_continued(tmp_path, clock, {"minutes": 2}, 2, speed=(20.0, 0.1))
    assert trainer.num_epochs == 3 and len(trainer.trained) == 1
    assert trainer.rates[-1] == pytest.approx(0.01 * (1 / 3) ** 0.9)


def killed_and_continued(tmp_path, clock, budget, killed_after, continued_with=None, speed=(0.2, 0.2)):
    with pytest.raises(KeyboardInterrupt):
        with_budget(Fake, **budget)(tmp_path, clock, repeat(speed[0]), stops_after=killed_after).run_training()
    clock.advance(10000)
    trainer = with_budget(Fake, **(continued_with or budget))(tmp_path, clock, repeat(speed[1]))
    trainer.load_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    trainer.run_training()
    return trainer


@pytest.mark.parametrize("killed_after", [1, 2, 10, 19])
@pytest.mark.parametrize("seconds", [0.2, 0.8])
def test_continued_training_has_the_remaining_time(tmp_path, clock, killed_after, seconds):
    trainer = killed_and_continued(tmp_path, clock, {"minutes": 10}, killed_after, speed=(0.2, seconds))
    saved = record(tmp_path)
    assert trainer.num_epochs == 20 and len(trainer.trained) == 20 - killed_after
    tolerance = 0.02 if killed_after < 19 else 0.16  # a single last epoch cannot adapt to a lower speed
    assert saved["training_seconds"] == pytest.approx(600, rel=tolerance)
    assert len(saved["seconds_per_epoch"]) == len(saved["iterations_per_epoch"]) == 20
    assert trainer.rates[-1] == pytest.approx(0.01 * (1 / 20) ** 0.9)


def test_lost_epochs_do_not_count(tmp_path, clock):
    trainer = killed_and_continued(tmp_path, clock, {"epochs": 100}, 13)  # a checkpoint every five epochs
    assert len(trainer.trained) == 90
    assert record(tmp_path)["iterations"] == 100 * 250


def test_full_disk_keeps_the_previous_checkpoint(tmp_path, clock):
    """This also holds for nnU-Net's trainer, which overwrites its checkpoint."""

    class Full(Fake):
        def save_checkpoint(self, filename):
            if self.current_epoch < 2:
                return super().save_checkpoint(filename)
            Path(filename).write_bytes(b"half of it")
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")

    with pytest.raises(SetupError, match=r"checkpoint_\w+.pth could not be written .*repeat the command"):
        with_budget(Full, epochs=4)(tmp_path, clock, repeat(0.1)).run_training()
    assert all(torch.load(file, weights_only=False)["epoch"] <= 2 for file in tmp_path.glob("*.pth"))
    assert not list(tmp_path.glob("*.incomplete"))
    continued = with_budget(Fake, epochs=4)(tmp_path, clock, repeat(0.1))
    continued.load_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    continued.run_training()
    assert record(tmp_path)["iterations"] == 1000


def test_full_disk_for_the_record_is_reported(tmp_path, clock, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(budget, "write_atomically", full)
    with pytest.raises(SetupError, match="budget.json could not be written .*No space left.*repeat the command"):
        with_budget(Fake, epochs=2)(tmp_path, clock, repeat(0.1)).run_training()


def test_second_training_of_a_fold_is_rejected(tmp_path, clock):
    class Twice(Fake):
        def train_step(self, batch):
            if self.current_epoch == 1:
                with pytest.raises(SetupError, match="Another process is training this fold"):
                    with_budget(Fake, epochs=2)(tmp_path, clock, repeat(0.1)).run_training()
            return super().train_step(batch)

    with_budget(Twice, epochs=2)(tmp_path, clock, repeat(0.1)).run_training()
    assert record(tmp_path)["iterations"] == 500 and not (tmp_path / "training.lock").exists()


def test_training_with_another_budget_is_not_continued(tmp_path, clock):
    with pytest.raises(
        CheckpointError, match="a training of 10 minutes that stopped before epoch 8, .* now 20 minutes"
    ):
        killed_and_continued(tmp_path, clock, {"minutes": 10}, 8, {"minutes": 20})
    assert record(tmp_path)["minutes"] == 10
    assert (tmp_path / "checkpoint_latest.pth").is_file()


def test_training_without_a_budget_is_not_continued(tmp_path, clock):
    trainer = with_budget(Fake, minutes=10)(tmp_path, clock, repeat(0.2))
    trainer.current_epoch = 400
    with pytest.raises(CheckpointError, match="a training without a budget that stopped before epoch 400"):
        trainer.run_training()


class FakeHRMedSeg(nnUNetTrainerHRMedSeg, Fake):
    """Steps that only advance the clock, in the trainer of HRMedSeg."""

    validation_step = Fake.validation_step  # the validation step of HRMedSeg evaluates a batch

    def __init__(self, folder, clock, speed):
        Fake.__init__(self, folder, clock, speed)
        self.initial_lr, self.weight_decay, self.warmup_iterations, self.save_every = 1e-3, 0.0, 20, 1
        self.batch_augmentation = None

    def initialize(self):
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        self.was_initialized = True


def test_schedule_of_hrmedseg_spans_the_budget(tmp_path, clock):
    trainer = with_budget(FakeHRMedSeg, minutes=10)(tmp_path, clock, repeat(0.1))
    trainer.run_training()
    assert trainer.trained[0] == 20
    warmup = [(WARMUP_START + (1 - WARMUP_START) * i / 20) * (1 - i / 20 / 20) ** 0.9 for i in range(20)]
    assert trainer.rates[:20] == pytest.approx([1e-3 * factor for factor in warmup])
    assert trainer.rates[20:] == sorted(trainer.rates[20:], reverse=True)
    assert trainer.rates[20] == pytest.approx(1e-3 * (1 - 1 / 20) ** 0.9)
    assert 0 < trainer.rates[-1] < 1e-3 * (1 / 20) ** 0.9


class Compiling(Fake):
    """The first training and validation iterations in a process take minutes: they compile the network."""

    compiles = True
    trainings = validations = 0

    def _do_i_compile(self):
        return self.compiles

    def train_step(self, batch):
        self.clock.advance(0 if self.trainings else 300)
        self.trainings += 1
        return super().train_step(batch)

    def validation_step(self, batch):
        self.clock.advance(0 if self.validations else 200)
        self.validations += 1
        return super().validation_step(batch)


def test_compilation_is_not_counted(tmp_path, clock):
    trainer = with_budget(Compiling, minutes=10)(tmp_path, clock, repeat(1.0))
    began = clock.now
    trainer.run_training()
    found = record(tmp_path)
    assert found["training_seconds"] == pytest.approx(600, rel=0.05)
    assert clock.now - began == pytest.approx(500 + 300 + 200 + found["training_seconds"], abs=10)
    assert found["seconds_per_epoch"][0] < 10 and found["iterations"] > 450
    # the second epoch is planned from the time of a step without the compilation
    assert trainer.trained[1] > 10


def test_compilation_of_a_continued_training_is_not_counted(tmp_path, clock):
    with pytest.raises(KeyboardInterrupt):
        with_budget(Compiling, minutes=10)(tmp_path, clock, repeat(1.0), stops_after=8).run_training()
    trainer = with_budget(Compiling, minutes=10)(tmp_path, clock, repeat(1.0))
    trainer.load_checkpoint(tmp_path / "checkpoint_latest.pth")
    trainer.run_training()
    assert record(tmp_path)["training_seconds"] == pytest.approx(600, rel=0.06)


def test_first_iteration_without_compilation_is_counted(tmp_path, clock):
    class Slow(Compiling):
        compiles = False

    with_budget(Slow, minutes=10)(tmp_path, clock, repeat(1.0)).run_training()
    assert record(tmp_path)["seconds_per_epoch"][0] > 500
