"""Description of unused files in a folder."""

from __future__ import annotations

import os
import sys

import pytest

from hrmedseg_onnx.skipped import describe_skipped, find_unused


def test_unused_files_and_folders_are_found(tmp_path):
    for name in ("a.png", "b.jpg", ".DS_Store", "summary.json", "a.npz"):
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    used = [tmp_path / "a.png", str(tmp_path / "elsewhere" / "b.jpg")]
    assert find_unused(tmp_path, used, ["summary.json", ".npz"]) == [".DS_Store", "b.jpg", "sub/"]
    assert find_unused(tmp_path / "sub", []) == []


def test_file_may_be_given_by_another_path(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    (tmp_path / "linked").symlink_to(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    assert find_unused(tmp_path / "images", ["linked/a.png"]) == []


def test_sentence_lists_some_names_and_counts_the_rest(tmp_path):
    assert describe_skipped(tmp_path, []) == []
    names = [f"{i:02}.jpg" for i in range(12)]
    assert describe_skipped(tmp_path, names) == [f"Skipped in {tmp_path}: {', '.join(names[:10])} and 2 more."]


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes only on Linux")
def test_names_that_are_not_text_can_be_printed(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb"):
        pass
    (name,) = find_unused(tmp_path, [])
    assert name.encode() == b"\\xff.png"
