"""Child processes of a command: ctrl-C does not reach them, and they end with the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from nnunet_hrmedseg.io.child_processes import ignoring_ctrl_c, run_in_group

POSIX = pytest.mark.skipif(os.name == "nt", reason="process groups require POSIX")

# starts a worker, like nnU-Net, and waits
COMMAND = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("started", flush=True)
time.sleep(60)
"""
PARENT = """
import os, signal, sys
from nnunet_hrmedseg.io.child_processes import run_in_group
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in the background ignores it
try:
    run_in_group([sys.executable, "-c", sys.argv[1]], os.environ)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_status_of_a_command_is_returned():
    assert run_in_group([sys.executable, "-c", "raise SystemExit(3)"], os.environ) == 3


@POSIX
@pytest.mark.parametrize(
    "how, status", [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGHUP, 128 + signal.SIGHUP)]
)
def test_command_and_its_workers_end_with_the_process_that_started_them(how, status):
    """They print nothing; a terminal sends ctrl-C to the process group of the parent."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, COMMAND],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    parent.stdout.readline()
    os.killpg(parent.pid, how)
    _, printed = parent.communicate(timeout=30)  # until all processes, including the worker, have closed the output
    assert (parent.returncode, printed) == (status, "")


@POSIX
def test_children_ignore_ctrl_c():
    before = signal.getsignal(signal.SIGINT)
    with ignoring_ctrl_c():
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True)
    assert signal.getsignal(signal.SIGINT) is before
    child.send_signal(signal.SIGINT)
    child.communicate("on\n", timeout=30)
    assert child.returncode == 0


def test_other_threads_do_not_change_signal_handlers():
    entered = []

    def enter():
        with ignoring_ctrl_c():
            entered.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [signal.getsignal(signal.SIGINT)]
