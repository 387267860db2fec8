"""Detection of paths, user names and names of training cases in texts; public names are not detected."""

from __future__ import annotations

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


def test_private_entries_are_removed_at_any_depth():
    private = PrivacyFilter(["case_001"])
    value = {"a": "/data/x/y", "b": {"case_001": 1, "c": ["x", "case_001", ("./a", 2)]}, "d": 3}
    assert private.redact(value) == {"b": {"c": ["x", [2]]}, "d": 3}
