import csv
import errno
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import nn

from nnunet_hrmedseg.encoders import loop
from nnunet_hrmedseg.encoders.checkpoint import load_state
from nnunet_hrmedseg.encoders.loop import LoopSettings, run_loop
from nnunet_hrmedseg.errors import CheckpointError, PlanError, SetupError
from nnunet_hrmedseg.io.processes import Processes, processes

ALONE = Processes(0, 1, torch.device("cpu"))


class Line(nn.Module):
    """A module that learns to double a number and draws random numbers like dropout."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(1, 1)
        self.fixed = nn.Parameter(torch.ones(1), requires_grad=False)
        self.seen = []

    def forward(self, batch):
        self.seen.append(batch[0, 0].item())
        return (self.layer(batch + 0.01 * torch.rand_like(batch)) - 2 * batch).square().mean()


def _batches(epoch, first_step):
    for step in range(first_step, 5):
        yield torch.tensor([[epoch + step / 10]])


def _settings(**changed):
    values = {"epochs": 4, "steps_per_epoch": 5, "images_per_step": 2, "learning_rate": 1e-2, "decay": 0.9}
    return LoopSettings(**{**values, "warmup_steps": 3, **changed})


def _no_log(text):
    pass


@pytest.fixture
def no_curve(monkeypatch):
    """Skip the plot of losses, which takes longer than training these epochs."""
    monkeypatch.setattr(loop, "draw_curve", lambda rows, file: None)


@pytest.mark.slow
def test_run_learns_and_writes_losses_and_curve(tmp_path):
    module = Line()
    settings = _settings(epochs=10, learning_rate=0.1, decay=0.98)
    history = run_loop(module, _batches, settings, tmp_path, ALONE, validate=lambda: 0.5, log=_no_log)
    losses = [row["loss"] for row in history.rows]
    assert losses[-1] < 0.1 * max(losses)
    with open(tmp_path / "losses.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 50 and rows[-1]["epoch"] == "10" and rows[-1]["images"] == "100"
    assert [row["validation_loss"] for row in rows[:5]] == ["", "", "", "", "0.5"]
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert module.fixed.item() == 1 and not module.training
    assert not list(tmp_path.glob("*.incomplete"))


def test_learning_rate_warms_up_and_decays():
    settings = _settings()
    assert settings.learning_rate_at(0) == pytest.approx(1e-2 / 3)
    assert settings.learning_rate_at(5) == pytest.approx(1e-2 * 0.9)
    assert settings.learning_rate_at(20) == pytest.approx(1e-2 * 0.9**4)


@pytest.fixture
def steps(monkeypatch):
    """Record the learning rate and the norm of the gradients at each step of Adam."""
    found = []
    step = torch.optim.Adam.step

    def noting(self, *arguments):
        [group] = self.param_groups
        gradients = [parameter.grad.flatten() for parameter in group["params"]]
        found.append((group["lr"], torch.cat(gradients).norm().item()))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", noting)
    return found


@pytest.mark.usefixtures("no_curve")
@pytest.mark.parametrize("decay", [0.9, None])
def test_each_step_uses_its_scheduled_learning_rate(tmp_path, steps, decay):
    settings = _settings(decay=decay)
    run_loop(Line(), _batches, settings, tmp_path, ALONE, log=_no_log)
    assert [rate for rate, _ in steps] == [settings.learning_rate_at(step) for step in range(20)]


@pytest.mark.usefixtures("no_curve")
def test_gradients_are_clipped_to_the_norm(tmp_path, steps):
    class Steep(Line):
        def forward(self, batch):
            return super().forward(batch) * (1e6 if batch[0, 0] < 2 else 1e-3)

    run_loop(Steep(), _batches, _settings(clip_norm=3.0), tmp_path, ALONE, log=_no_log)
    norms = [norm for _, norm in steps]
    assert norms[:10] == pytest.approx([3.0] * 10, rel=1e-3)
    assert 0 < max(norms[10:]) < 0.1  # smaller gradients are unchanged


@pytest.mark.usefixtures("no_curve")
def test_module_is_in_evaluation_mode_only_for_validation(tmp_path):
    class Watched(Line):
        def forward(self, batch):
            modes.append(self.training)
            return super().forward(batch)

    modes, module = [], Watched()

    def validate():
        modes.append(module.training)
        return 0.5

    run_loop(module, _batches, _settings(), tmp_path, ALONE, validate=validate, log=_no_log)
    assert modes == [*[True] * 5, False] * 4


def test_learning_rate_without_decay_follows_nnunet():
    settings, steps = _settings(decay=None), 20
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    expected = PolyLRScheduler(optimizer, 1e-2, steps)
    for step in range(3, steps):
        expected.step(step)
        assert settings.learning_rate_at(step) == pytest.approx(optimizer.param_groups[0]["lr"])


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [1, 5, 8])
def test_stopped_run_continues_identically(tmp_path, stop_after):
    whole = Line()
    (tmp_path / "whole").mkdir()
    run_loop(whole, _batches, _settings(), tmp_path / "whole", ALONE, log=_no_log)

    class Stop(Exception):
        pass

    def stopping(epoch, first_step):
        for batch in _batches(epoch, first_step):
            if len(first.seen) == stop_after:
                raise Stop
            yield batch

    (tmp_path / "run").mkdir()
    first = Line()
    with pytest.raises(Stop):
        run_loop(first, stopping, _settings(save_seconds=0), tmp_path / "run", ALONE, log=_no_log)
    second = Line()
    logged = []
    run_loop(second, _batches, _settings(save_seconds=0), tmp_path / "run", ALONE, log=logged.append)
    assert first.seen + second.seen == whole.seen
    assert "Continuing at epoch" in logged[0]
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_finished_run_is_not_trained_again(tmp_path):
    run_loop(Line(), _batches, _settings(), tmp_path, ALONE, log=_no_log)
    again = Line()
    history = run_loop(again, _batches, _settings(), tmp_path, ALONE, log=_no_log)
    assert not again.seen and len(history.rows) == 20


@pytest.mark.slow
def test_damaged_checkpoint_is_reported(tmp_path):
    run_loop(Line(), _batches, _settings(), tmp_path, ALONE, log=_no_log)
    file = tmp_path / "checkpoint.pth"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="checkpoint.pth cannot be read"):
        run_loop(Line(), _batches, _settings(), tmp_path, ALONE, log=_no_log)


def test_non_finite_loss_stops_the_run(tmp_path):
    class Broken(Line):
        def forward(self, batch):
            return super().forward(batch) * float("nan")

    with pytest.raises(PlanError, match="not finite"):
        run_loop(Broken(), _batches, _settings(), tmp_path, ALONE, log=_no_log)
    assert not (tmp_path / "checkpoint.pth").exists()


class NotFiniteAtThirdStep(Line):
    """A module that is not finite at the third step: its loss, or only the gradient."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, batch):
        loss = super().forward(batch)
        if len(self.seen) != 3:
            return loss
        if self.what == "loss":
            return loss * math.nan
        return loss + (0 * self.layer.weight).sqrt().sum()  # 0, and its gradient is 0 x infinity


class OneOfTwo(Processes):
    """A process group as under torchrun, without the other process."""

    def wrap(self, module):
        return module

    def mean(self, value):
        return value

    def wait(self):
        pass


def _hundred(epoch, first_step):
    return [torch.tensor([[step / 100]]) for step in range(first_step, 100)]


RARELY_A_ROW = {"epochs": 1, "steps_per_epoch": 100, "save_seconds": 0}  # of losses.csv, and a checkpoint at each step


@pytest.mark.usefixtures("no_curve")
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("what", ["loss", "weights"])
def test_non_finite_values_are_not_saved(tmp_path, what, rank):
    group = OneOfTwo(rank, 2, torch.device("cpu"))
    module = NotFiniteAtThirdStep(what)
    with pytest.raises(PlanError, match=f"The {what} .* not finite after 3 steps") as error:
        run_loop(module, _hundred, _settings(**RARELY_A_ROW), tmp_path, group, log=_no_log)
    assert "Start again with a smaller --lr (now 0.01), in another folder or with --overwrite" in str(error.value)
    assert len(module.seen) == 3
    if rank == 1:
        assert not list(tmp_path.iterdir())
        return
    kept = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert kept["step"] == 2 and all(value.isfinite().all() for value in kept["module"].values())
    again = Line()
    run_loop(again, _hundred, _settings(**RARELY_A_ROW), tmp_path, ALONE, log=_no_log)
    assert len(again.seen) == 98


def test_advice_after_an_overflow_in_mixed_precision():
    message = str(loop.not_finite_error("The loss is not finite after 7 steps.", 0.01, True))
    assert message.startswith(
        "The loss is not finite after 7 steps. Repeat the command with --no_amp: it continues from the"
    )
    assert "If that does not help, start again with a smaller --lr (now 0.01)" in message


@pytest.mark.usefixtures("no_curve")
def test_run_continues_with_mixed_precision_after_steps_without(tmp_path):
    run_loop(Line(), _batches, _settings(), tmp_path, ALONE, log=_no_log)
    module, scaler = Line(), torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = torch.optim.Adam([parameter for parameter in module.parameters() if parameter.requires_grad])
    _, step, _ = load_state(tmp_path, module, optimizer, scaler)
    assert step == 20 and scaler.get_scale() == 8.0


@pytest.mark.usefixtures("no_curve")
def test_checkpoint_with_non_finite_weights_is_reported(tmp_path):
    run_loop(Line(), _batches, _settings(), tmp_path, ALONE, log=_no_log)
    checkpoint = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    checkpoint["module"]["layer.weight"][0] = math.inf
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match=r"cannot be read .*weights are not finite.* --overwrite to start again"):
        run_loop(Line(), _batches, _settings(), tmp_path, ALONE, log=_no_log)


@pytest.fixture
def locked(monkeypatch):
    """Return names of files that cannot be replaced, as on Windows while another program has them open."""
    names = set()
    replace = os.replace

    def refusing(source, target):
        if os.path.basename(target) in names:
            raise PermissionError(13, "Access is denied", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refusing)
    return names


def test_locked_losses_file_does_not_end_a_run(tmp_path, locked):
    locked |= {"losses.csv", "losses.png"}
    logged, epochs = [], []

    def validate():
        epochs.append(1)
        if len(epochs) == 4:
            locked.clear()
        return 0.5

    run_loop(Line(), _batches, _settings(save_seconds=0), tmp_path, ALONE, validate=validate, log=logged.append)
    assert len(logged) == 2
    for line, name in zip(logged, ("losses.csv", "losses.png"), strict=True):
        assert f"{tmp_path / name} cannot be written" in line and "Access is denied" in line and "close it" in line
    with open(tmp_path / "losses.csv") as file:
        assert len(list(csv.DictReader(file))) == 20
    assert (tmp_path / "losses.png").exists()


@pytest.mark.usefixtures("no_curve")
def test_failed_write_of_a_checkpoint_ends_the_run(tmp_path, locked):
    locked.add("checkpoint.pth")
    module = Line()
    with pytest.raises(SetupError, match="checkpoint.pth could not be written .*Access is denied.*Permit writing"):
        run_loop(module, _batches, _settings(), tmp_path, ALONE, log=_no_log)
    assert len(module.seen) == 5


@pytest.mark.usefixtures("no_curve")
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
    ],
)
def test_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch, error):
    save, saved = torch.save, []

    def full(content, file):
        saved.append(content["step"])
        if len(saved) == 3:
            Path(file).write_bytes(b"half of it")
            raise error
        save(content, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SetupError, match="checkpoint.pth could not be written .*untouched.*continues from the last"):
        run_loop(Line(), _batches, _settings(), tmp_path, ALONE, log=_no_log)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint.pth", "losses.csv"]
    logged = []
    run_loop(Line(), _batches, _settings(), tmp_path, ALONE, log=logged.append)
    assert "Continuing at epoch 2.00 of 4." in logged


def test_single_process_without_torchrun(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes("cpu") as group:
        assert (group.rank, group.count, group.first) == (0, 1, True)
        module = nn.Linear(1, 1)
        assert group.wrap(module) is module
        group.wait()
        assert group.mean(torch.tensor(3.0)) == 3


@pytest.mark.slow
def test_killed_process_loses_only_steps_after_the_checkpoint(tmp_path):
    """Send SIGKILL at some moment, as the system does when memory runs out; the checkpoint is complete and usable."""
    code = (
        "import time, torch\n"
        "from pathlib import Path\n"
        "from tests.encoders import test_loop as t\n"
        "def slow(epoch, first):\n"
        "    for batch in t._batches(epoch, first):\n"
        "        time.sleep(0.005)\n"
        "        yield batch\n"
        f"t.run_loop(t.Line(), slow, t._settings(epochs=10000, save_seconds=0), Path({str(tmp_path)!r}), t.ALONE)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "losses.png").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    step = torch.load(tmp_path / "checkpoint.pth", weights_only=True)["step"]
    assert step >= 5
    again = Line()
    end = _settings(epochs=step // 5 + 2)
    run_loop(again, _batches, end, tmp_path, ALONE, log=_no_log)
    assert len(again.seen) == end.epochs * 5 - step
