"""Folders of datasets among the remains of other users."""

import shutil
from pathlib import Path

import pytest

from nnunet_hrmedseg.errors import SetupError
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
