"""Locks on file systems with locks and without, held by real processes that end well or are killed."""

import errno
import multiprocessing
import os
import threading

import pytest

from nnunet_hrmedseg.io import locks
from nnunet_hrmedseg.io.locks import LockHeld, lock, release_and_remove

fcntl = pytest.importorskip("fcntl")

WITHOUT_LOCKS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]


def use_file_system(error):
    """Make flock fail as on a file system without locks, and leases short."""
    if error:

        def flock(descriptor, operation):
            raise OSError(error, os.strerror(error))

        fcntl.flock = flock
    # a lease that a holder on a busy machine still renews in time
    locks.LEASE_SECONDS, locks.HEARTBEAT_SECONDS, locks.POLL_SECONDS = 10.0, 0.2, 0.1


@pytest.fixture(params=[0, *WITHOUT_LOCKS], ids=lambda error: errno.errorcode.get(error, "with locks"))
def file_system(request, monkeypatch):
    """The errno that flock ends with."""
    monkeypatch.setattr(fcntl, "flock", fcntl.flock)
    for name in ("LEASE_SECONDS", "HEARTBEAT_SECONDS", "POLL_SECONDS"):
        monkeypatch.setattr(locks, name, getattr(locks, name))
    use_file_system(request.param)
    return request.param


@pytest.fixture(scope="module")
def processes():
    """Processes that start quickly: their server has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def hold(file, error, held, end):
    use_file_system(error)
    mine = lock(file)
    held.set()
    end.wait()
    release_and_remove(mine)


class Holder:
    """Another process that holds a lock."""

    def __init__(self, processes, file, error):
        held, self.end = processes.Event(), processes.Event()
        self.process = processes.Process(target=hold, args=(file, error, held, self.end))
        self.process.start()
        assert held.wait(60)

    def kill(self):
        self.process.kill()
        self.process.join()

    def finish(self):
        self.end.set()
        self.process.join()


def test_a_lock_is_held_until_its_process_releases_it(processes, file_system, tmp_path):
    file = tmp_path / "lock"
    holder = Holder(processes, file, file_system)
    with pytest.raises(LockHeld) as held:
        lock(file)
    if file_system:
        assert held.value.marker == tmp_path / "lock.holder"
        assert f"process {holder.process.pid} on " in str(held.value) and f"Delete {file}" not in str(held.value)
        assert str(held.value.marker) in str(held.value)
    else:
        assert str(held.value) == ""
    holder.finish()
    assert os.listdir(tmp_path) == []
    lock(file).release()


def test_a_lock_does_not_outlive_a_killed_process(processes, file_system, tmp_path):
    file = tmp_path / "lock"
    Holder(processes, file, file_system).kill()
    waited = []
    release_and_remove(lock(file, on_wait=lambda: waited.append(True)))
    assert not waited
    assert os.listdir(tmp_path) == []


def test_a_lock_is_waited_for(processes, file_system, tmp_path):
    holder = Holder(processes, tmp_path / "lock", file_system)
    mine = lock(tmp_path / "lock", on_wait=holder.end.set)
    holder.process.join()
    assert mine.is_locked
    mine.release()


def test_a_marker_that_the_user_deletes(file_system, tmp_path):
    mine = lock(tmp_path / "lock")
    for file in tmp_path.iterdir():
        file.unlink()
    other = lock(tmp_path / "lock")
    release_and_remove(mine)
    if file_system:
        assert (tmp_path / "lock.holder").is_file()  # the other's
    other.release()


def orphan(file, error, held):
    """Start a process that outlives this one, as nnU-Net's workers outlive a training that was killed."""
    use_file_system(error)
    mine = lock(file)
    if os.fork() == 0:
        held.put(os.getpid())  # by the worker itself: before this, it may still have to let go of the lock
    threading.Event().wait()
    mine.release()


def test_a_worker_that_outlives_its_killed_process_does_not_hold_the_lock(processes, file_system, tmp_path):
    held = processes.SimpleQueue()
    process = processes.Process(target=orphan, args=(tmp_path / "lock", file_system, held))
    process.start()
    worker = held.get()
    process.kill()
    process.join()
    try:
        lock(tmp_path / "lock").release()
    finally:
        os.kill(worker, 9)


# ---- another machine, whose processes cannot be looked for -----------------------------------------------------------

ELSEWHERE = "filelock/2\npid=4711\nhost=node7\nmode=lease\ntoken=0123456789abcdef\nduration=1.2\n"


@pytest.fixture
def marker(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", fcntl.flock)
    for name in ("LEASE_SECONDS", "HEARTBEAT_SECONDS", "POLL_SECONDS"):
        monkeypatch.setattr(locks, name, getattr(locks, name))
    use_file_system(errno.ENOLCK)
    locks.LEASE_SECONDS = 1.2
    file = tmp_path / "lock.holder"
    file.write_text(ELSEWHERE)
    return file


def test_the_marker_of_a_process_that_was_killed_on_another_machine_is_taken_over(marker):
    mine = lock(marker.with_suffix(""))
    assert f"pid={os.getpid()}\n" in marker.read_text()
    mine.release()
    assert not marker.exists()


def test_the_marker_of_a_living_process_on_another_machine_is_left_alone(marker):
    end = threading.Event()

    def beat():
        while not end.wait(0.1):
            os.utime(marker)

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        with pytest.raises(LockHeld, match="process 4711 on node7 wrote it") as held:
            lock(marker.with_suffix(""))
    finally:
        end.set()
        heart.join()
    assert held.value.marker == marker
    assert marker.read_text() == ELSEWHERE


# ---- folders that cannot be written to -------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "denied"), OSError(errno.EROFS, "read-only")])
def test_what_cannot_be_written_is_an_error_and_not_a_lock(tmp_path, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError) as raised:
        lock(tmp_path / "lock")
    assert raised.value.errno == error.errno
