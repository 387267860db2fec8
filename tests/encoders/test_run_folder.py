import errno
import json
from pathlib import Path

import pytest
import torch

from nnunet_hrmedseg.encoders import run_folder
from nnunet_hrmedseg.encoders.run_folder import open_run, prepare_folder
from nnunet_hrmedseg.errors import SetupError
from nnunet_hrmedseg.io import locks
from nnunet_hrmedseg.io.locks import lock
from nnunet_hrmedseg.io.processes import Processes

ALONE = Processes(0, 1, torch.device("cpu"))


def test_full_disk_for_the_settings_is_reported(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder, "write_atomically", full)
    with pytest.raises(SetupError, match="run.json could not be written .*Make room"):
        prepare_folder(tmp_path / "run", {}, overwrite=False)


def test_file_as_run_folder_is_rejected(tmp_path):
    (tmp_path / "run").write_text("kept")
    for folder in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(SetupError, match="run is a file"), open_run(folder, {}, ALONE, overwrite=True):
            pass
    assert (tmp_path / "run").read_text() == "kept"


def test_run_folder_is_continued_only_with_equal_settings(tmp_path):
    run = tmp_path / "run"
    assert prepare_folder(run, {"lr": 1, "canvas": (64, 64)}, overwrite=False) is False
    (run / "checkpoint.pth").write_bytes(b"x")
    assert prepare_folder(run, {"lr": 1, "canvas": [64, 64]}, overwrite=False) is True
    with pytest.raises(SetupError, match="lr 1 there and 2 now"):
        prepare_folder(run, {"lr": 2, "canvas": [64, 64]}, overwrite=False)
    assert (run / "checkpoint.pth").exists()
    assert prepare_folder(run, {"lr": 2, "canvas": [64, 64]}, overwrite=True) is False
    assert json.loads((run / "run.json").read_text())["lr"] == 2


def test_locked_losses_file_is_reported(tmp_path, monkeypatch):
    run = tmp_path / "run"
    prepare_folder(run, {"lr": 1}, overwrite=False)
    (run / "losses.csv").write_text("x")
    unlink = Path.unlink

    def refusing(self, **options):
        if self.name == "losses.csv":
            raise PermissionError(13, "Access is denied", str(self))
        unlink(self, **options)

    monkeypatch.setattr(Path, "unlink", refusing)
    with pytest.raises(SetupError, match=r"losses\.csv cannot be removed .*Access is denied.* close it there"):
        prepare_folder(run, {"lr": 2}, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_with_other_files_is_kept(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(SetupError, match="holds other files"):
        prepare_folder(tmp_path, {}, overwrite=overwrite)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_in_use_by_another_command_is_rejected(tmp_path, overwrite):
    run = tmp_path / "run"
    with open_run(run, {"lr": 1}, ALONE, overwrite=False):
        (run / "checkpoint.pth").write_bytes(b"x")
        with pytest.raises(SetupError, match=r"Another command is training .*run\.lock.* another folder\.$"):
            with open_run(run, {"lr": 1}, ALONE, overwrite=overwrite):
                pass
        assert (run / "checkpoint.pth").exists()
    assert sorted(file.name for file in run.iterdir()) == ["checkpoint.pth", "run.json"]
    with open_run(run, {"lr": 1}, ALONE, overwrite=False):
        pass


def test_folder_is_free_after_an_error(tmp_path):
    for lr in (1, 1):
        with pytest.raises(ValueError), open_run(tmp_path / "run", {"lr": lr}, ALONE, overwrite=False):
            raise ValueError
    with pytest.raises(SetupError, match="lr 1 there"), open_run(tmp_path / "run", {"lr": 2}, ALONE, overwrite=False):
        pass
    with open_run(tmp_path / "run", {"lr": 1}, ALONE, overwrite=False):
        pass


def test_lock_of_a_killed_command_is_no_other_file(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    lock(run / "run.lock").release()
    (run / "run.lock").touch()
    assert prepare_folder(run, {"lr": 1}, overwrite=False) is False


def test_folder_that_cannot_be_locked_is_used(tmp_path, monkeypatch, capsys):
    def refuse(file):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(locks, "lock", refuse)
    with open_run(tmp_path / "run", {}, ALONE, overwrite=False):
        pass
    assert "run.lock cannot be locked ([Errno 13] Permission denied)" in capsys.readouterr().out
