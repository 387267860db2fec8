"""Folders of datasets among the remains of other users."""

import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from nnunet_hrmedseg.errors import SetupError
from nnunet_hrmedseg.io import locks
from nnunet_hrmedseg.io.new_dataset import building_directory


def test_remains_of_another_user_are_left(tmp_path, monkeypatch):
    remains = tmp_path / "incomplete_Dataset001_Test"
    (remains / "imagesTr").mkdir(parents=True)
    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, **options: path == remains or rmtree(path, **options))
    with building_directory(tmp_path / "Dataset001_Test") as incomplete:
        (incomplete / "dataset.json").touch()
    assert (tmp_path / "Dataset001_Test" / "dataset.json").is_file()
    assert sorted(tmp_path.iterdir()) == [tmp_path / "Dataset001_Test", remains]


def test_folder_that_cannot_be_created_is_reported(tmp_path, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(SetupError, match=rf"Permission denied\). The folder {tmp_path} belongs .* Permit it"):
        with building_directory(tmp_path / "Dataset001_Test"):
            pass


def test_two_commands_do_not_build_one_folder(tmp_path):
    folder = tmp_path / "new" / "Dataset001_Test"
    with building_directory(folder) as incomplete:
        (incomplete / "case_0.png").touch()
        with pytest.raises(
            SetupError, match="Another command is writing .*Dataset001_Test: it holds .* another name.$"
        ):
            with building_directory(folder, overwrite=True):
                pass
    assert [file.name for file in folder.iterdir()] == ["case_0.png"]
    assert [file.name for file in folder.parent.iterdir()] == ["Dataset001_Test"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_that_was_written_in_the_meantime_is_kept(tmp_path, overwrite):
    folder = tmp_path / "Dataset001_Test"
    folder.mkdir()
    (folder / "case_0.png").touch()
    with nullcontext() if overwrite else pytest.raises(SetupError, match="exists already: another command"):
        with building_directory(folder, overwrite=overwrite):
            pass
    assert (folder / "case_0.png").exists() is not overwrite


def test_folder_that_cannot_be_locked_is_written(tmp_path, monkeypatch):
    def refuse(file):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(locks, "lock", refuse)
    with building_directory(tmp_path / "Dataset001_Test") as incomplete:
        (incomplete / "dataset.json").touch()
    assert (tmp_path / "Dataset001_Test" / "dataset.json").is_file()
