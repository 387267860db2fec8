"""Files and folders are replaced completely or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from nnunet_hrmedseg.errors import HRMedSegError, SetupError
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


def test_folder_replaces_another(tmp_path):
    new, place = _folder(tmp_path / "new", "new"), _folder(tmp_path / "place", "old")
    replace_directory(new, place)
    assert (place / "file").read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["place"]


def test_folder_replaces_a_link_and_not_its_target(tmp_path):
    target, place = _folder(tmp_path / "target", "old"), tmp_path / "place"
    place.symlink_to(target)
    for text in ("new", "newer"):
        replace_directory(_folder(tmp_path / "new", text), place)
        assert (place / "file").read_text() == text and (target / "file").read_text() == "old"
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["place", "target"]


def test_folder_is_moved_to_a_new_place(tmp_path):
    replace_directory(_folder(tmp_path / "new", "new"), tmp_path / "place")
    assert (tmp_path / "place" / "file").read_text() == "new"


def test_old_folder_is_kept_if_the_new_one_cannot_be_moved(tmp_path, monkeypatch):
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


def test_file_replaces_another(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"old")
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("there", [True, False])
def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch, there):
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


def test_failed_write_leaves_no_partial_file(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_path(file) as temporary:
        assert temporary != file and temporary.parent == tmp_path
        temporary.write_bytes(b"half of")
        assert file.read_bytes() == b"old"
        raise KeyboardInterrupt
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"file": b"old"}


def test_remains_of_a_killed_process_are_removed_and_not_written_to(tmp_path):
    file = tmp_path / "file"
    remains = tmp_path / "file.incomplete"
    remains.write_bytes(b"of another user")
    remains.chmod(0o444)
    with atomic_path(file) as temporary:
        assert not temporary.exists()
        temporary.write_bytes(b"new")
    assert file.read_bytes() == b"new" and not remains.exists()


def test_errors_before_writing_are_unchanged(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "file"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_failed_replacement_leaves_no_temporary_file(tmp_path):
    place = _folder(tmp_path / "place", "kept")
    with pytest.raises(OSError):
        write_atomically(place, b"a folder is no file")
    assert [entry.name for entry in tmp_path.iterdir()] == ["place"] and (place / "file").read_text() == "kept"


# ---- folders to write to ---------------------------------------------------------------------------------------------


def test_output_folder_is_created(tmp_path):
    folder = tmp_path / "new" / "below"
    assert make_output_dir(folder) == folder and folder.is_dir()
    (folder / "kept").touch()
    assert make_output_dir(folder) == folder and (folder / "kept").is_file()


def test_file_as_output_folder_is_rejected(tmp_path):
    file = tmp_path / "masks"
    file.write_text("kept")
    with pytest.raises(SetupError, match="masks is a file; a folder is needed .* another place"):
        make_output_dir(file)
    with pytest.raises(SetupError, match=r"below cannot be made: .*masks is a file\. .* another place"):
        make_output_dir(file / "further" / "below")
    assert file.read_text() == "kept"


def test_output_folder_that_cannot_be_created_is_reported(tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", forbidden)
    with pytest.raises(SetupError, match=r"folder .*masks cannot be made \(Permission denied\)\. .* another place"):
        make_output_dir(tmp_path / "masks")


def test_read_only_output_folder_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not (path == tmp_path and mode & os.W_OK))
    with pytest.raises(SetupError, match=f"written to the folder {tmp_path}: permit it"):
        make_output_dir(tmp_path)


def test_output_folder_is_checked_without_creating_it(tmp_path, monkeypatch):
    assert check_output_dir(tmp_path / "new" / "below") == tmp_path / "new" / "below"
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    (tmp_path / "lost").symlink_to(tmp_path / "nothing")
    with pytest.raises(SetupError, match=r"file is a file; a folder is needed"):
        check_output_dir(tmp_path / "file")
    with pytest.raises(SetupError, match=r"below cannot be made: .*file is a file"):
        check_output_dir(tmp_path / "file" / "below")
    with pytest.raises(SetupError, match=r"lost is not a folder"):
        check_output_dir(tmp_path / "lost")
    monkeypatch.setattr(os, "access", lambda path, mode: not (path == tmp_path and mode & os.W_OK))
    with pytest.raises(SetupError, match=f"new cannot be made: nothing can be written to {tmp_path}. Permit it"):
        check_output_dir(tmp_path / "new")


def test_relative_folder_is_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_output_dir(Path("masks")) == Path("masks") and check_output_dir(Path(".")) == Path(".")


# ---- full disks ------------------------------------------------------------------------------------------------------


def test_failed_write_is_an_error_with_advice(tmp_path):
    error = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(SetupError, match=r"b.json could not be written \(.*No space left.*untouched.*Make room"):
        with reporting_write_errors(tmp_path / "b.json"):
            raise error
    with pytest.raises(SetupError, match=r"untouched.*Make room on the disk, and repeat it\.$"):
        with reporting_write_errors(tmp_path, "and repeat it."):
            raise error


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full does not exist")
@pytest.mark.parametrize("numbers", [10, 100_000])
def test_full_disk_under_torch_is_recognized(numbers):
    with pytest.raises(SetupError, match=r"could not be written \(torch could not write all of it"):
        with reporting_write_errors(Path("checkpoint.pth")):
            torch.save({"weights": torch.zeros(numbers)}, "/dev/full")


def test_denied_write_is_not_reported_as_a_full_disk(tmp_path):
    with pytest.raises(SetupError, match=r"untouched\. Permit writing there, or give another place\.$"):
        with reporting_write_errors(tmp_path / "b.json"):
            raise PermissionError(errno.EACCES, "Permission denied")


def test_other_errors_are_unchanged(tmp_path):
    for error in (RuntimeError("shapes differ"), HRMedSegError("iostream error"), ValueError("it")):
        with pytest.raises(type(error), match=f"^{error}$"), reporting_write_errors(tmp_path):
            raise error


@pytest.mark.parametrize("number, expected", [(errno.ENOSPC, True), (errno.EACCES, True), (errno.ENOENT, False)])
def test_errors_of_the_disk_are_recognized(number, expected):
    assert is_disk_error(OSError(number, "")) is expected
