"""A training that is killed repeatedly, and one that the user interrupts: real processes and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.trainers.conftest import LABELS

pytestmark = pytest.mark.slow

EPOCHS = 8
KILLS = 10

# like `nnUNetv2_train ... --c`, in processes that do not import torch again: a kill every second instead of every ten
TRAIN = """
import json, os, random, signal, sys, time
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from tests.trainers.tiny_trainers import _trainer

def train(description, epochs):
    trainer = _trainer(description)
    trainer.num_epochs = epochs
    maybe_load_checkpoint(trainer, continue_training=True, validation_only=False, pretrained_weights_file=None)
    trainer.run_training()

description, epochs, kills = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
moments = random.Random(1)
killed = 0
while True:
    child = os.fork()
    if child == 0:
        train(description, epochs)
        os._exit(0)
    if killed < kills:
        time.sleep(moments.uniform(0.1, 2.5))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        break
    killed += 1
    print("killed", flush=True)
print("status", os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="fork and SIGKILL require POSIX")
def test_training_killed_ten_times_completes_all_epochs(dataset, tmp_path):
    description = dataset(LABELS)
    command = [sys.executable, "-c", TRAIN, json.dumps(description), str(EPOCHS), str(KILLS)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600)
    assert done.stdout.splitlines()[-1] == "status 0", done.stdout + done.stderr
    # the training may end before the last kills
    assert done.stdout.count("killed") >= KILLS // 2
    (fold,) = (tmp_path / "nnUNet_results").glob("*/*/fold_0")
    assert not list(fold.glob("*.incomplete")) and not (fold / "checkpoint_latest.pth").exists()
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["current_epoch"] == EPOCHS
    assert all(len(values) == EPOCHS for values in checkpoint["logging"].values() if values)
    assert all(torch.isfinite(values).all() for values in checkpoint["network_weights"].values())


INTERRUPTED = """
import json, signal, sys
from tests.trainers.tiny_trainers import _trainer

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal, wherever the tests are run from
    trainer = _trainer(json.loads(sys.argv[1]))
    trainer.num_epochs = 1000
    trainer.run_training()
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_ctrl_c_leaves_no_worker_processes(dataset, tmp_path):
    description = dataset(LABELS)
    root = Path(__file__).parents[2]
    script = tmp_path / "train.py"
    script.write_text(INTERRUPTED)
    environment = {**os.environ, "nnUNet_n_proc_DA": "2", "PYTHONPATH": str(root)}
    process = subprocess.Popen(
        [sys.executable, script, json.dumps(description)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: list((tmp_path / "nnUNet_results").glob("*/*/fold_0/checkpoint_latest.pth")), process)
        workers = in_session(process.pid) - {process.pid}
        assert len(workers) >= 2
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does at ctrl-C
        process.wait(60)
        wait_for(lambda: not in_session(process.pid))
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    (file,) = (tmp_path / "nnUNet_results").glob("*/*/fold_0/checkpoint_latest.pth")
    assert torch.load(file, weights_only=False)["current_epoch"] >= 1


def wait_for(condition, process=None, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and (process is None or process.poll() is None)
        time.sleep(0.1)


def in_session(session: int) -> set[int]:
    """Return the running processes of a session, without zombies."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, of = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(of) == session and state != "Z":
                found.add(int(entry.name))
    return found
