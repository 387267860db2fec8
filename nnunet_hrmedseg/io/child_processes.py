"""Child processes: ctrl-C is for the command alone, which ends its children. Imports nothing heavy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = [
    "ignoring_ctrl_c",
    "run_in_group",
    "terminate_group",
]


@contextmanager
def ignoring_ctrl_c() -> Iterator[None]:
    """Let processes that are started within this context ignore ctrl-C, which a terminal sends to all of them.

    Else each of them prints a traceback. Outside the main thread, where nothing can be set, the context does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_in_group(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command in a group of its own, which is ended with all its processes however this one is left.

    A shell's ctrl-C, and SIGTERM and SIGHUP while it runs, end the command; only SIGKILL lets it live on.

    Returns:
        Its exit status.
    """
    with _leaving_at(("SIGTERM", "SIGHUP")):
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            return process.wait()
        finally:
            terminate_group(process)


def terminate_group(process: subprocess.Popen) -> None:
    """End the process and all in its group; on Windows, which has no groups, the process alone."""
    if sys.platform == "win32":
        process.kill()
        return
    with suppress(ProcessLookupError, PermissionError):  # all have ended; macOS does not permit it then
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def _leaving_at(names: Sequence[str]) -> Iterator[None]:
    """Within this context raise SystemExit at these signals, so that `finally` clauses run; Windows has not all."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
