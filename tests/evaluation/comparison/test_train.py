import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

import pytest

# replaces the interpreter that runs the training: it forks a worker, like nnU-Net, and waits
TRAINING = """#!{python}
import multiprocessing, os, sys, time
from nnunet_hrmedseg.evaluation.comparison import train

def work():
    print(os.getpid(), flush=True)
    time.sleep(600)

def wait(**options):
    time.sleep(0.5)
    multiprocessing.get_context("fork").Process(target=work, daemon=True).start()
    time.sleep(600)

train._train = wait
sys.exit(train.main(sys.argv[sys.argv.index(train.__name__) + 1 :]))
"""
COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that started the tests in the background ignores it
sys.executable = sys.argv[1]
from nnunet_hrmedseg.evaluation.comparison.train import train_fold
train_fold(1, "2d", 0, "nnUNetTrainer", "nnUNetPlans", epochs=1, minutes=None, device="cpu")
"""


def runs(process: int) -> bool:
    try:
        os.kill(process, 0)
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_training_ends_with_the_command_that_started_it(how: signal.Signals, tmp_path: Path) -> None:
    training = tmp_path / "training"
    training.write_text(TRAINING.format(python=sys.executable))
    training.chmod(0o755)
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(training)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert command.stdout is not None
    hangs = Timer(300, command.kill)
    hangs.start()
    worker = int(command.stdout.readline())
    hangs.cancel()
    assert runs(worker)
    command.send_signal(how)
    assert command.wait(timeout=300) != 0
    deadline = time.monotonic() + 300
    while runs(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(worker)
