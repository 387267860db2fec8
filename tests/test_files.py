"""Folders take each other's place whole, or not at all."""

from __future__ import annotations

import os

import pytest

from nnunet_hrmedseg.files import put_folder


def _folder(place, text):
    place.mkdir()
    (place / "file").write_text(text)
    return place


def test_a_folder_takes_the_place_of_another(tmp_path):
    new, place = _folder(tmp_path / "new", "new"), _folder(tmp_path / "place", "old")
    put_folder(new, place)
    assert (place / "file").read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["place"]


def test_a_folder_takes_an_empty_place(tmp_path):
    put_folder(_folder(tmp_path / "new", "new"), tmp_path / "place")
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
        put_folder(new, place)
    assert (place / "file").read_text() == "old"
