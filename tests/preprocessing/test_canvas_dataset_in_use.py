"""Canvas data that folds need, that trainings use, or that several processes create."""

import errno
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest
from filelock import FileLock

from nnunet_hrmedseg.errors import DataError, SetupError
from nnunet_hrmedseg.io import locks
from nnunet_hrmedseg.preprocessing import case_workers
from nnunet_hrmedseg.preprocessing.in_use import mark_in_use, marks_of
from nnunet_hrmedseg.preprocessing.preprocessor import HRMedSegPreprocessor
from tests.preprocessing.canvas_folders import CASES, CHANGES, DyingPreprocessor, SlowPreprocessor

# ---- folds that need the data ----------------------------------------------------------------------------------------


def test_removed_case_that_a_fold_needs_is_still_used(data):
    data.ensure()
    data.write_splits(*CASES)
    data.remove("b")
    before = data.content()
    folder, lines = data.ensure()
    assert folder == data.folder and data.content() == before
    assert (data.gt / "b.png").is_file()
    (line,) = lines
    for words in (
        "existing canvas data",
        "splits_final.json names cases that are missing: b",
        "restore",
        "remove",
        "start over",
    ):
        assert words in line

    with pytest.raises(DataError, match="names cases that are missing: b"):
        data.ensure(force=True)
    assert data.content() == before

    data.write_splits("a", "c")
    _, lines = data.ensure()
    assert "raw cases were removed: b" in lines[0]
    assert data.status().state == "complete" and not (data.folder / "b.pkl").exists()


def test_removed_case_that_a_fold_needs_is_reported_if_data_is_unusable(data):
    data.ensure()
    data.write_splits(*CASES)
    data.remove("b")
    (data.folder / "a.pkl").unlink()
    with pytest.raises(DataError, match="names cases that are missing: b"):
        data.ensure()
    assert (data.folder / "b.b2nd").is_file()


def test_unreadable_splits_are_reported(data):
    data.ensure()
    data.remove("b")
    (data.folder.parent / "splits_final.json").write_text('[{"train": 1}]')
    with pytest.raises(DataError, match="splits_final.json cannot be read as nnU-Net's list of folds"):
        data.ensure()


class Training:
    """An object that prevents the data from being replaced while it exists."""

    def __init__(self, data):
        data.ensure(on_ready=lambda folder: mark_in_use(folder, "model fold_0", self))


IN_USE = "In use by model fold_0"


@pytest.mark.parametrize("words", [words for words in CHANGES if "dataset.json" not in words])
def test_data_is_not_replaced_under_a_running_training(data, words):
    training = Training(data)
    CHANGES[words](data)
    before, truth = data.content(), (data.gt / "c.png").read_bytes()
    _, lines = data.ensure()
    (line,) = lines
    assert "is not replaced while a training uses it" in line and IN_USE in line and words in line
    assert data.content() == before
    assert (data.gt / "c.png").read_bytes() == truth  # validation uses the labels of the training

    with pytest.raises(DataError, match=IN_USE):
        data.ensure(force=True)
    assert data.content() == before

    del training
    assert not marks_of(data.folder)
    _, lines = data.ensure()
    assert lines[0].startswith("Resizing") and data.status().state == "complete"


@pytest.mark.parametrize("damage", [CHANGES["labels in dataset.json"], lambda data: (data.folder / "a.pkl").unlink()])
def test_unusable_data_is_not_replaced_under_a_running_training(data, damage):
    training = Training(data)
    damage(data)
    before = data.content()
    with pytest.raises(DataError, match=IN_USE):
        data.ensure()
    assert data.content() == before and training


def test_data_in_use_without_file_locks_is_not_replaced(data, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    for name, seconds in (("LEASE_SECONDS", 1.2), ("HEARTBEAT_SECONDS", 0.2), ("POLL_SECONDS", 0.1)):
        monkeypatch.setattr(locks, name, seconds)
    training = Training(data)
    data.write("b", seed=7)
    (line,) = data.ensure()[1]
    (marker,) = data.folder.parent.glob("*.in_use.*.holder")
    assert IN_USE in line and f"the file {marker} stands for one" in line
    del training
    assert not marks_of(data.folder)
    assert data.ensure()[1][0].startswith("Resizing")


def use_in_process(data, ready):
    training = Training(data)
    ready.set()
    time.sleep(600)
    del training


@pytest.mark.slow
def test_killed_training_releases_the_data(data, processes):
    data.ensure()
    ready = processes.Event()
    process = processes.Process(target=use_in_process, args=(data, ready))
    process.start()
    assert ready.wait(60)
    data.write("b", seed=7)
    assert IN_USE in data.ensure()[1][0]
    process.kill()
    process.join()
    assert data.ensure()[1][0].startswith("Resizing")


# ---- processes -------------------------------------------------------------------------------------------------------


def ensure_in_process(data, start, log_file, preprocessor, num_processes=1):
    start.wait()
    if num_processes > 1:
        case_workers.SPAWN_WORKERS_AFTER_SECONDS = 0
        case_workers.usable_cores = lambda: num_processes
    _, lines = data.ensure(preprocessor=preprocessor, num_processes=num_processes)
    log_file.write_text("\n".join(lines))


@pytest.mark.slow
def test_one_process_creates_the_data_and_the_others_wait(data, processes, tmp_path):
    start = processes.Barrier(3)
    logs = [tmp_path / f"log{i}" for i in range(3)]
    running = [
        processes.Process(target=ensure_in_process, args=(data, start, log, SlowPreprocessor(0.3))) for log in logs
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
        assert process.exitcode == 0
    outcomes = sorted(log.read_text().split()[0] for log in logs)
    assert outcomes == ["Resizing", "Waiting", "Waiting"]
    assert data.status().state == "complete"


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_killed_process_leaves_no_data_that_looks_complete(data, processes, tmp_path, num_processes):
    busy = tmp_path / "busy"
    preprocessor = SlowPreprocessor(60, busy)
    arguments = (data, processes.Barrier(1), tmp_path / "log", preprocessor, num_processes)
    process = processes.Process(target=ensure_in_process, args=arguments)
    process.start()
    started = [Path(f"{busy}-{case}") for case in CASES[:num_processes]]
    for _ in range(600):
        if all(file.exists() for file in started):
            break
        time.sleep(0.1)
    process.kill()
    process.join()
    assert data.leftovers() and data.status().state == "missing"
    for file in started:
        FileLock(file).acquire(timeout=20).lock.release()  # its worker has ended with it
    _, lines = data.ensure()
    assert lines[0].startswith("Resizing")
    assert data.status().state == "complete"
    assert not data.leftovers()


def test_kill_between_the_two_renames_loses_nothing(data):
    data.ensure()
    data.folder.rename(data.folder.with_name(f"{data.folder.name}.replaced"))
    folder, lines = data.ensure()
    assert not lines and folder.is_dir()
    assert not data.leftovers()


def test_kill_after_the_renames_leaves_only_temporary_files(data):
    data.ensure()
    shutil.copytree(data.folder, data.folder.with_name(f"{data.folder.name}.replaced"))
    data.ensure(force=True)
    assert data.status().state == "complete"
    assert not data.leftovers()


def test_data_behind_a_link_is_replaced_there(data, tmp_path):
    data.ensure()
    elsewhere = tmp_path / "fast disk [1]" / "canvas data"
    elsewhere.parent.mkdir()
    data.folder.rename(elsewhere)
    data.folder.symlink_to(elsewhere)
    for seed in (1, 2):
        data.write("a", seed=seed)
        assert data.ensure()[1][0].startswith("Resizing 3 cases")
        assert data.folder.is_symlink() and data.status().state == "complete"
        # the lock is there as well, for others who link to the same data
        assert sorted(os.listdir(elsewhere.parent)) == [elsewhere.name, f"{elsewhere.name}.lock"]
    shutil.rmtree(elsewhere.parent)
    with pytest.raises(SetupError, match="is a link to .*canvas data, which is not there"):
        data.ensure()


@pytest.mark.filterwarnings("ignore:.*is not used anymore")
def test_remains_that_cannot_be_removed_do_not_stop_later_trainings(data, monkeypatch):
    data.ensure()
    rmtree = shutil.rmtree
    monkeypatch.setattr(
        shutil, "rmtree", lambda path, **options: None if ".replaced" in path.name else rmtree(path, **options)
    )
    for _ in range(3):
        data.ensure(force=True)
        assert data.status().state == "complete"
    assert len(data.leftovers()) == 3  # as of another user, who owns their files


@pytest.mark.slow
def test_workers_create_the_same_data(data, workers_at_once):
    in_process, _ = data.ensure()
    expected = {file.name: file.read_bytes() for file in in_process.glob("*.pkl")}
    data.ensure(num_processes=2, force=True)
    assert {file.name: file.read_bytes() for file in data.folder.glob("*.pkl")} == expected
    assert data.status().state == "complete"
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["error", "death"])
def test_failing_worker_is_reported_with_its_case(data, workers_at_once, processes, monkeypatch, how):
    monkeypatch.setattr(case_workers.multiprocessing, "get_context", lambda method: processes)
    if how == "error":
        data.write("b", label=7)
    preprocessor = (HRMedSegPreprocessor if how == "error" else DyingPreprocessor)(verbose=False)
    with pytest.raises(DataError if how == "error" else SetupError) as error:
        data.ensure(num_processes=2, preprocessor=preprocessor)
    monkeypatch.undo()
    for words in ("case 'b'", "does not list: 7", "b.png") if how == "error" else ("died", "a, b", "memory"):
        assert words in str(error.value)
    assert not data.folder.exists()
    assert not data.leftovers()
    assert not multiprocessing.active_children()
