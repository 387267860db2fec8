"""Files and folders take each other's place whole, or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.io.files import (
    atomic_path,
    check_output_dir,
    is_disk_error,
    make_output_dir,
    replace_directory,
    reporting_write_errors,
    write_atomically,
)


def _folder(place, text):
    place.mkdir()
    (place / "file").write_text(text)
    return place


def test_a_folder_takes_the_place_of_another(tmp_path):
    new, place = _folder(tmp_path / "new", "new"), _folder(tmp_path / "place", "old")
    replace_directory(new, place)
    assert (place / "file").read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["place"]


def test_a_folder_takes_an_empty_place(tmp_path):
    replace_directory(_folder(tmp_path / "new", "new"), tmp_path / "place")
    assert (tmp_path / "place" / "file").read_text() == "new"


def test_what_was_there_stays_where_the_new_folder_cannot_be_put(tmp_path, monkeypatch):
    new, place = _folder(tmp_path / "new", "new"), _folder(tmp_path / "place", "old")
    rename = os.rename

    def full(source, target):
        if source == new:
            raise OSError("no space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="no space left"):
        replace_directory(new, place)
    assert (place / "file").read_text() == "old"


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_file_takes_the_place_of_another(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"old")
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("there", [True, False])
def test_a_write_that_fails_halfway_leaves_what_was_there(tmp_path, monkeypatch, there):
    file = tmp_path / "file"
    if there:
        file.write_bytes(b"old")

    def full(path, content):
        with open(path, "wb") as written:
            written.write(content[: len(content) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(file, b"a new text")
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == ({"file": b"old"} if there else {})


def test_what_fails_while_it_is_written_leaves_nothing(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_path(file) as temporary:
        assert temporary != file and temporary.parent == tmp_path
        temporary.write_bytes(b"half of")
        assert file.read_bytes() == b"old"
        raise KeyboardInterrupt
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"file": b"old"}


def test_what_fails_before_anything_is_written_says_so_itself(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "file"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_take_its_place_leaves_nothing(tmp_path):
    place = _folder(tmp_path / "place", "kept")
    with pytest.raises(OSError):
        write_atomically(place, b"a folder is no file")
    assert [entry.name for entry in tmp_path.iterdir()] == ["place"] and (place / "file").read_text() == "kept"


# ---- folders to write to ---------------------------------------------------------------------------------------------


def test_a_folder_to_write_to_is_made(tmp_path):
    folder = tmp_path / "new" / "below"
    assert make_output_dir(folder) == folder and folder.is_dir()
    (folder / "kept").touch()
    assert make_output_dir(folder) == folder and (folder / "kept").is_file()


def test_a_file_is_no_folder_to_write_to(tmp_path):
    file = tmp_path / "masks"
    file.write_text("kept")
    with pytest.raises(HRMedSegError, match="masks is a file; a folder is needed .* another place"):
        make_output_dir(file)
    with pytest.raises(HRMedSegError, match=r"below cannot be made: .*masks is a file\. .* another place"):
        make_output_dir(file / "further" / "below")
    assert file.read_text() == "kept"


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", forbidden)
    with pytest.raises(HRMedSegError, match=r"folder .*masks cannot be made \(Permission denied\)\. .* another place"):
        make_output_dir(tmp_path / "masks")


def test_a_folder_that_nothing_can_be_written_to_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not (path == tmp_path and mode & os.W_OK))
    with pytest.raises(HRMedSegError, match=f"written to the folder {tmp_path}: permit it"):
        make_output_dir(tmp_path)


def test_a_folder_to_write_to_is_checked_without_making_it(tmp_path, monkeypatch):
    assert check_output_dir(tmp_path / "new" / "below") == tmp_path / "new" / "below"
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    (tmp_path / "lost").symlink_to(tmp_path / "nothing")
    with pytest.raises(HRMedSegError, match=r"file is a file; a folder is needed"):
        check_output_dir(tmp_path / "file")
    with pytest.raises(HRMedSegError, match=r"below cannot be made: .*file is a file"):
        check_output_dir(tmp_path / "file" / "below")
    with pytest.raises(HRMedSegError, match=r"lost is not a folder"):
        check_output_dir(tmp_path / "lost")
    monkeypatch.setattr(os, "access", lambda path, mode: not (path == tmp_path and mode & os.W_OK))
    with pytest.raises(HRMedSegError, match=f"new cannot be made: nothing can be written to {tmp_path}. Permit it"):
        check_output_dir(tmp_path / "new")


def test_a_relative_folder_is_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_output_dir(Path("masks")) == Path("masks") and check_output_dir(Path(".")) == Path(".")


# ---- full disks ------------------------------------------------------------------------------------------------------


def test_a_failed_write_is_an_error_with_advice(tmp_path):
    error = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(HRMedSegError, match=r"b.json could not be written \(.*No space left.*untouched.*Make room"):
        with reporting_write_errors(tmp_path / "b.json"):
            raise error
    with pytest.raises(HRMedSegError, match=r"untouched.*Make room on the disk, and repeat it\.$"):
        with reporting_write_errors(tmp_path, "and repeat it."):
            raise error


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no disk that is always full")
@pytest.mark.parametrize("numbers", [10, 100_000])
def test_a_full_disk_under_torch_is_recognized(numbers):
    with pytest.raises(HRMedSegError, match=r"could not be written \(torch could not write all of it"):
        with reporting_write_errors(Path("checkpoint.pth")):
            torch.save({"weights": torch.zeros(numbers)}, "/dev/full")


def test_a_forbidden_write_is_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(HRMedSegError, match=r"untouched\. Permit writing there, or give another place\.$"):
        with reporting_write_errors(tmp_path / "b.json"):
            raise PermissionError(errno.EACCES, "Permission denied")


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (RuntimeError("shapes differ"), HRMedSegError("iostream error"), ValueError("it")):
        with pytest.raises(type(error), match=f"^{error}$"), reporting_write_errors(tmp_path):
            raise error


@pytest.mark.parametrize("number, is_so", [(errno.ENOSPC, True), (errno.EACCES, True), (errno.ENOENT, False)])
def test_errors_about_the_disk(number, is_so):
    assert is_disk_error(OSError(number, "")) is is_so
