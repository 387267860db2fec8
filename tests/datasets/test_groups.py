"""Groups of cases: patterns, spreadsheets, splits, and names that look like frames."""

import json

import pytest
from PIL import Image

from nnunet_hrmedseg.datasets.groups import find_groups, make_splits, suspected_groups
from nnunet_hrmedseg.errors import DataError, PlanError, SetupError
from nnunet_hrmedseg.nnunet_versions import nnunet_folders
from tests.datasets.new_datasets import make, picture, square

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


def test_groups_keep_patients_together(folders):
    for patient in range(6):
        for frame in range(3):
            Image.fromarray(picture()).save(folders / "images" / f"p{patient}_f{frame}.png")
            Image.fromarray(square(1)).save(folders / "masks" / f"p{patient}_f{frame}.png")
    warned = make(folders, dry_run=True)
    assert any("one patient or video (p" in warning for warning in warned.warnings)
    summary = make(folders, groups=r"^(p\d)_")
    splits = json.loads((folders / "raw" / "Dataset007_Test" / "splits_final.json").read_text())
    assert len(splits) == 5 and not summary.warnings
    for split in splits:
        train, val = ({case[:2] for case in split[part]} for part in ("train", "val"))
        assert not train & val and len(split["train"]) + len(split["val"]) == 18
    assert sorted(case for split in splits for case in split["val"]) == sorted(summary.cases)


def test_groups_that_differ_from_planned_folds_are_rejected(folders):
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import _maybe_copy_splits_file

    for name in ("a1", "a2", "b1", "b2", "c1", "c2"):
        Image.fromarray(picture(1)).save(folders / "images" / f"{name}.png")
        Image.fromarray(square(1)).save(folders / "masks" / f"{name}.png")
    summary = make(folders, groups="^(.)")
    assert any("3 groups make 3 folds: train the folds 0 to 2 alone" in warning for warning in summary.warnings)
    planned = folders / "preprocessed" / "Dataset007_Test" / "splits_final.json"
    planned.parent.mkdir(parents=True)
    with nnunet_folders(nnUNet_preprocessed=folders / "preprocessed"):
        _maybe_copy_splits_file(str(summary.splits), str(planned))
        make(folders, groups="^(.)", overwrite=True)
        for text in (planned.read_text(), "[]", "not JSON"):
            planned.write_text(text)
            with pytest.raises(
                SetupError, match="Dataset007_Test.splits_final.json is from an earlier planning.*Delete"
            ):
                make(folders, groups="(.)$", overwrite=True)
        assert json.loads(summary.splits.read_text()) == make_splits({case: case[0] for case in summary.cases})
        make(folders, overwrite=True)
