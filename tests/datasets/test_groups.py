"""Groups of cases: patterns, spreadsheets, splits, and names that look like frames."""

import pytest

from nnunet_hrmedseg.datasets.groups import find_groups, make_splits, suspected_groups
from nnunet_hrmedseg.errors import DataError, PlanError

CASES = ["p1_a", "p1_b", "p2_a", "p3_a"]


def test_groups_by_pattern():
    assert find_groups(CASES, r"^(p\d)_") == {"p1_a": "p1", "p1_b": "p1", "p2_a": "p2", "p3_a": "p3"}
    assert find_groups(CASES, r"^p\d")["p1_b"] == "p1"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_groups_by_spreadsheet(tmp_path, delimiter):
    file = tmp_path / "groups.csv"
    rows = [("Case", "Group"), ("p1_a", "x"), ("p1_b", "x"), ("p2_a", "y"), ("p3_a", "z")]
    file.write_text("\ufeff" + "\n".join(delimiter.join(row) for row in rows), encoding="utf-8")
    assert find_groups(CASES, str(file)) == {"p1_a": "x", "p1_b": "x", "p2_a": "y", "p3_a": "z"}


def test_spreadsheet_may_name_files_and_decomposed_characters(tmp_path):
    file = tmp_path / "groups.csv"
    file.write_text("case,group\na/p1.PNG,x\nGru\u0308n.1,y\nb.nii.gz,y\n", encoding="utf-8")
    assert find_groups(["a_p1", "Gr\u00fcn.1", "b"], str(file)) == {"a_p1": "x", "Gr\u00fcn.1": "y", "b": "y"}
    with pytest.raises(DataError, match="no group for 1 cases: c. It names other cases: a_p1, b."):
        find_groups(["Gr\u00fcn.1", "c"], str(file))


def test_invalid_rules_are_rejected(tmp_path):
    with pytest.raises(PlanError, match="is not a CSV file or a regular expression"):
        find_groups(CASES, "(p")
    with pytest.raises(DataError, match="no group for 2 cases: p2_a, p3_a"):
        find_groups(CASES, "^p1")
    with pytest.raises(DataError, match="all cases into one group"):
        find_groups(CASES, "^p")
    file = tmp_path / "groups.csv"
    file.write_text("name,patient\n")
    with pytest.raises(DataError, match="needs the columns case and group; it has name, patient"):
        find_groups(CASES, str(file))
    with pytest.raises(DataError, match="cannot be read"):
        find_groups(CASES, str(tmp_path / "none.csv"))


def test_splits_are_balanced_and_limited_by_the_number_of_groups():
    splits = make_splits({"p1_a": "1", "p1_b": "1", "p2_a": "2", "p3_a": "3"})
    assert sorted(sorted(split["val"]) for split in splits) == [["p1_a", "p1_b"], ["p2_a"], ["p3_a"]]
    groups = {f"{group}_{index}": str(group) for group in range(10) for index in range(group + 1)}
    assert {len(split["val"]) for split in make_splits(groups)} == {11}
    assert make_splits(groups) == make_splits(dict(reversed(groups.items())))


@pytest.mark.parametrize(
    ("cases", "suspected"),
    [
        (["video1_frame001", "video1_frame002", "video2_frame001", "video2_frame002"], True),
        (["001_12", "001_13", "002_7", "002_8"], True),
        (["ISIC_0000001", "ISIC_0000002", "ISIC_0000003"], False),
        (["a", "b", "c"], False),
        (["img1", "img2", "img3", "img4"], False),
    ],
)
def test_names_that_look_like_frames(cases, suspected):
    assert (suspected_groups(cases) is not None) == suspected
