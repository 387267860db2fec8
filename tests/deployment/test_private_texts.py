"""Detection of paths, user names and names of training cases in texts; public names are not detected."""

from __future__ import annotations

from unicodedata import normalize

import pytest

from nnunet_hrmedseg.deployment.private_texts import PrivacyFilter


@pytest.mark.parametrize(
    "text, found",
    [
        ("/data/me/x", True),
        ("see /home/me", True),
        ("~/models/x", True),
        ("../labels/x", True),
        ("C:\\Users\\me", True),
        ("\\\\server\\share\\x", True),
        ("file:///x", True),
        ("imagesTr/a_0000.nii.gz", True),
        ("T1/T2", False),
        ("1.0 04/05/2018", False),
        ("https://example.org/a/b", False),
        ("torch.nn.modules.conv.Conv2d", False),
        ("gray and/or white", False),
        ("case_001", True),
        ("of case_001, and more", True),
        ("case_001_0000.png", True),
        ("xcase_001x", True),  # distinctive enough to be found anywhere
        ("tumor", True),
        ("tumors", False),
        ("7", False),
        ("label", False),
    ],
)
def test_private_texts_are_found(text, found):
    private = PrivacyFilter(["case_001", "tumor", "7", "label"], public=["label"])
    assert (private.find(text) is not None) is found


@pytest.mark.parametrize(
    "text, found",
    [
        ("scans of Anna Smith, 2019", True),
        ("Anna Smith_0000.png", True),
        ("see smith.j.", True),
        ("by M\N{LATIN SMALL LETTER U WITH DIAERESIS}ller", True),
        ("Joanna Smith", False),
        ("Anna Smithson", False),
        ("smith.johnson", False),
    ],
)
def test_names_that_are_not_one_word_are_found(text, found):
    decomposed = normalize("NFD", "M\N{LATIN SMALL LETTER U WITH DIAERESIS}ller")  # as macOS writes names of files
    assert (PrivacyFilter(["Anna Smith", "smith.j", decomposed]).find(text) is not None) is found


def test_private_entries_are_removed_at_any_depth():
    private = PrivacyFilter(["case_001"])
    value = {"a": "/data/x/y", "b": {"case_001": 1, "c": ["x", "case_001", ("./a", 2)]}, "d": 3}
    assert private.redact(value) == {"b": {"c": ["x", [2]]}, "d": 3}


@pytest.fixture
def user(monkeypatch):
    """Return a function that sets the name of the account and the home folder."""

    def become(name: str, home: str) -> None:
        monkeypatch.setenv("LOGNAME", name)
        monkeypatch.setenv("HOME", home)

    return become


@pytest.mark.parametrize("name, home", [("data", "/data"), ("nnunet", "/home/nnunet"), ("root", "/data")])
@pytest.mark.parametrize(
    "text",
    ["data", "for nnunet", "the data of nnunet, and more", "nnunet_data", "https://example.org/nnunet/data/x", "T1/T2"],
)
def test_users_named_by_ordinary_words_are_not_found_in_texts(user, name, home, text):
    user(name, home)
    assert PrivacyFilter([]).find(text) is None


@pytest.mark.parametrize(
    "text, found",
    [
        ("trained in models/nnunet", True),
        ("~nnunet", True),
        ("nnunet/models", True),
        ("at D\\nnunet", True),
        ("nnunet@example.org", True),
        ("nnunet", False),
        ("models/nnunetv2", False),
        ("nnunet-models", False),
    ],
)
def test_users_are_found_as_parts_of_paths(user, text, found):
    user("nnunet", "/srv/nnunet")
    assert (PrivacyFilter([]).find(text) is not None) is found
    assert PrivacyFilter([], public=["nnunet"]).find(text) is None
