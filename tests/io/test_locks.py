"""Locks on file systems with and without lock support, held by real processes that exit or are killed."""

import errno
import multiprocessing
import os
import threading

import pytest

from nnunet_hrmedseg.io import locks
from nnunet_hrmedseg.io.locks import LockHeld, is_locked, lock, lock_for_reading, release_and_remove

fcntl = pytest.importorskip("fcntl")

WITHOUT_LOCKS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]


def use_file_system(error):
    """Make flock fail as on a file system without locks, and shorten leases."""
    if error:

        def flock(descriptor, operation):
            raise OSError(error, os.strerror(error))

        fcntl.flock = flock
    # a lease that is still renewed in time on a busy machine
    locks.LEASE_SECONDS, locks.HEARTBEAT_SECONDS, locks.POLL_SECONDS = 10.0, 0.2, 0.1


@pytest.fixture(params=[0, *WITHOUT_LOCKS], ids=lambda error: errno.errorcode.get(error, "with locks"))
def file_system(request, monkeypatch):
    """Return the errno that flock raises."""
    monkeypatch.setattr(fcntl, "flock", fcntl.flock)
    for name in ("LEASE_SECONDS", "HEARTBEAT_SECONDS", "POLL_SECONDS"):
        monkeypatch.setattr(locks, name, getattr(locks, name))
    use_file_system(request.param)
    return request.param


@pytest.fixture(scope="module")
def processes():
    """Return a context of processes that start quickly, because their server has imported everything."""
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
    """A process that holds a lock."""

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


def test_lock_is_held_until_its_process_releases_it(processes, file_system, tmp_path):
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


def test_lock_does_not_outlive_a_killed_process(processes, file_system, tmp_path):
    file = tmp_path / "lock"
    Holder(processes, file, file_system).kill()
    waited = []
    release_and_remove(lock(file, on_wait=lambda: waited.append(True)))
    assert not waited
    assert os.listdir(tmp_path) == []


def test_lock_is_waited_for(processes, file_system, tmp_path):
    holder = Holder(processes, tmp_path / "lock", file_system)
    mine = lock(tmp_path / "lock", on_wait=holder.end.set)
    holder.process.join()
    assert mine.is_locked
    mine.release()


def test_marker_deleted_by_the_user(file_system, tmp_path):
    mine = lock(tmp_path / "lock")
    for file in tmp_path.iterdir():
        file.unlink()
    other = lock(tmp_path / "lock")
    release_and_remove(mine)
    if file_system:
        assert (tmp_path / "lock.holder").is_file()  # of the other process
    other.release()


def orphan(file, error, held):
    """Start a process that outlives this one, like nnU-Net's workers after a training is killed."""
    use_file_system(error)
    mine = lock(file)
    if os.fork() == 0:
        held.put(os.getpid())  # written by the worker, which may have to release the lock first
    threading.Event().wait()
    mine.release()


def test_worker_that_outlives_its_killed_process_does_not_hold_the_lock(processes, file_system, tmp_path):
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


# ---- locks for which read access is enough ---------------------------------------------------------------------------


def test_lock_for_reading_is_found(tmp_path):
    file = tmp_path / "file"
    file.touch(0o444)
    assert is_locked(file) is False
    first, second = lock_for_reading(file), lock_for_reading(file)
    first.close()
    assert is_locked(file)
    second.close()
    assert is_locked(file) is False
    assert is_locked(tmp_path / "other") is None
    mine = lock(tmp_path / "lock")
    assert is_locked(tmp_path / "lock")
    mine.release()


@pytest.mark.parametrize("held_by_other", [True, False])
def test_exclusive_lock_that_needs_write_access(tmp_path, monkeypatch, held_by_other):
    """NFS locks a file that is open for reading only against writers."""
    (tmp_path / "lock").touch()
    flock = fcntl.flock

    def of_nfs(opened, operation):
        if operation & fcntl.LOCK_EX:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(opened, operation)

    held = open(tmp_path / "lock")
    if held_by_other:
        flock(held, fcntl.LOCK_EX)
    monkeypatch.setattr(fcntl, "flock", of_nfs)
    assert is_locked(tmp_path / "lock") is held_by_other
    held.close()


def test_file_system_without_locks_is_reported(tmp_path, file_system):
    (tmp_path / "file").touch()
    if file_system:
        with pytest.raises(OSError):
            lock_for_reading(tmp_path / "file")
        assert is_locked(tmp_path / "file") is None


def test_worker_does_not_keep_a_lock_for_reading(tmp_path):
    (tmp_path / "file").touch()
    mine = lock_for_reading(tmp_path / "file")
    started, start = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.write(start, b"1")
        threading.Event().wait()
    os.read(started, 1)
    mine.close()
    try:
        assert is_locked(tmp_path / "file") is False
    finally:
        os.kill(worker, 9)
        os.waitpid(worker, 0)


# ---- another machine, whose processes cannot be checked --------------------------------------------------------------

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


def test_marker_of_a_process_killed_on_another_machine_is_taken_over(marker):
    mine = lock(marker.with_suffix(""))
    assert f"pid={os.getpid()}\n" in marker.read_text()
    mine.release()
    assert not marker.exists()


def test_marker_of_a_living_process_on_another_machine_is_respected(marker):
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
def test_failed_write_is_an_error_and_not_a_lock(tmp_path, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError) as raised:
        lock(tmp_path / "lock")
    assert raised.value.errno == error.errno
