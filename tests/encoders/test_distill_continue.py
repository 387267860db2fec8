"""`hrmedseg encoder distill`: runs that are stopped and continued, and several processes."""

import json
import socket
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.encoders.loop import LoopSettings, run_loop
from nnunet_hrmedseg.io.processes import Processes
from nnunet_hrmedseg.weights import load_encoder
from tests.encoders.distill_runs import ONE_THREAD, QUICK, ROOT, SMALL, distill, fits_a_student, rows


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.mark.slow
def test_killed_command_continues_and_a_different_one_is_rejected(teachers, pictures, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["distill", "--teacher", str(teachers / "sam_tiny.pth"), "--images", str(pictures), "-o", str(run)]
    arguments += [*SMALL, *QUICK, "--epochs", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "nnunet_hrmedseg.cli", *arguments],
        cwd=ROOT, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (run / "losses.png").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    checkpoint = torch.load(run / "checkpoint.pth", weights_only=True)
    done = checkpoint["step"]
    assert done >= 2 and not (run / "encoder.safetensors").exists()

    assert main([*arguments, "--lr", "0.5"]) == 1
    error = capsys.readouterr().err
    assert "holds another run (learning_rate 0.001 there and 0.5 now)" in error and "--overwrite" in error

    # the same command shortly before its end
    epochs = done // 2 + 1
    settings = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**settings, "epochs": epochs}))
    assert main([*arguments[:-1], str(epochs)]) == 0
    assert f"Continuing at epoch {done / 2:.2f} of {epochs}" in capsys.readouterr().out
    assert [row["images"] for row in rows(run)][-1] == str(8 * epochs)
    assert [float(row["images"]) for row in rows(run)] == sorted({float(row["images"]) for row in rows(run)})
    assert fits_a_student(load_encoder(run / "encoder.safetensors"))


@pytest.mark.slow
@pytest.mark.usefixtures("no_curve")
@pytest.mark.parametrize("name", ["sam_tiny.pth", "nnUNetTrainer__nnUNetPlans__2d"])
def test_interrupted_run_gives_the_same_encoder(teachers, pictures, tmp_path, monkeypatch, name):
    from nnunet_hrmedseg.encoders import distill as command

    monkeypatch.setattr(command, "LoopSettings", lambda **given: LoopSettings(**given, save_seconds=0))
    options = ["--epochs", 3]
    assert distill(teachers / name, pictures, tmp_path / "whole", *options) == 0

    def stopping(self, epoch, first_step):
        for step, batch in enumerate(batches(self, epoch, first_step), first_step):
            if (epoch, step) == (1, 1):
                raise KeyboardInterrupt
            yield batch

    batches = command.DistillationBatches.__call__
    with monkeypatch.context() as patch:
        patch.setattr(command.DistillationBatches, "__call__", stopping)
        assert distill(teachers / name, pictures, tmp_path / "run", *options) == 130
    assert torch.load(tmp_path / "run" / "checkpoint.pth", weights_only=True)["step"] == 3
    # --no_amp does not identify a run: after an overflow in float16, the run continues without mixed precision
    assert distill(teachers / name, pictures, tmp_path / "run", *options, "--no_amp") == 0
    whole, run = (load_encoder(tmp_path / name / "encoder.safetensors") for name in ("whole", "run"))
    assert whole.sha256 == run.sha256


class WithoutNorm(nn.Module):
    """A module without batch norm, which uses the statistics of each process on the CPU: two processes learn
    the same as one process with all images."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)

    def forward(self, batch):
        seen, wanted = batch
        return (self.layer(seen) - wanted).square().mean()


def train_without_norm(folder, group):
    """Train for six steps of four examples, shared among the processes. Return the parameters and the logged losses."""

    def batches(epoch, first_step):
        random = torch.Generator().manual_seed(epoch)
        for _ in range(first_step, 3):
            yield tuple(torch.randn(4, width, generator=random)[group.rank :: group.count] for width in (3, 2))

    module = WithoutNorm()
    settings = LoopSettings(epochs=2, steps_per_epoch=3, images_per_step=4, learning_rate=0.1, decay=0.9)
    folder.mkdir(exist_ok=True)
    return parameters_and_losses(module, run_loop(module, batches, settings, folder, group, log=lambda text: None))


def parameters_and_losses(module, history):
    losses = [(row["loss"], row["validation_loss"]) for row in history.rows]
    return {name: parameter.detach() for name, parameter in module.named_parameters()}, losses


TWO_RUNS = """
import json, os, sys
from pathlib import Path
import torch
from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.encoders import distill, loop
from tests.encoders.test_distill_continue import parameters_and_losses, train_without_norm

kept, settings, port, *arguments = sys.argv[1:]
runs = []

def keeping(module, batches, of_loop, folder, group, **options):
    if not runs:
        runs.append(train_without_norm(Path(kept, "without_norm"), group))
    history = loop.run_loop(module, batches, of_loop, folder, group, **options)
    runs.append(parameters_and_losses(module, history))
    torch.save(runs, Path(kept, f"process_{group.rank}.pth"))
    return history

distill.run_loop = keeping
assert main([*arguments, "--epochs", "2"]) == 0
if os.environ["RANK"] == "0":  # as if the end were lost
    Path(settings).write_text(json.dumps({**json.loads(Path(settings).read_text()), "epochs": 3}))
os.environ.update(TORCHELASTIC_USE_AGENT_STORE="False", MASTER_PORT=port)
assert main([*arguments, "--epochs", "3"]) == 0
"""


@pytest.mark.slow
def test_torchrun_trains_and_continues_one_encoder(teachers, pictures, tmp_path):
    """Two processes train one encoder and continue after a stop; tested in one launch, because each takes seconds."""
    run, kept, script = tmp_path / "run", tmp_path / "kept", tmp_path / "two_runs.py"
    kept.mkdir()
    script.write_text(TWO_RUNS)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    command += ["--rdzv_endpoint", "localhost:0", script, kept, run / "run.json", port]
    command += ["distill", "--teacher", teachers / "nnUNetTrainer__nnUNetPlans__2d", "--images", pictures]
    command += ["-o", run, *SMALL, *QUICK, "--batch_size", "2"]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Encoder:") == 2 and done.stdout.count("11 images to train on") == 2
    assert done.stdout.count("Continuing at epoch 2.00 of 3") == 1
    made = load_encoder(run / "encoder.safetensors")
    assert fits_a_student(made) and "2 process(es)" in made.card["hardware"]
    assert made.card["recipe"]["batch_size"] == 4
    assert [row["images"] for row in rows(run)] == ["4", "8", "12", "16", "20", "24"]

    # each process saw different images, and both have the same weights
    first, second = (torch.load(kept / f"process_{rank}.pth", weights_only=True) for rank in range(2))
    for mine, others in zip(first, second, strict=True):
        assert mine[1] == others[1]
        for name, parameter in mine[0].items():
            assert torch.equal(parameter, others[0][name]), name
    trained, _ = first[-1]
    assert all(torch.equal(made.state[name[8:]], trained[name]) for name in trained if name.startswith("student."))
    # equal to those of one process with all images
    parameters, noted = train_without_norm(tmp_path / "alone", Processes(0, 1, torch.device("cpu")))
    assert first[0][1] == [(pytest.approx(loss, rel=1e-5), None) for loss, _ in noted]
    for name, parameter in parameters.items():
        assert torch.allclose(first[0][0][name], parameter, atol=1e-5), name
