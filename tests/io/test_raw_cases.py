"""Cases of a raw dataset, their reader, and unused files."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_hrmedseg.io.raw_cases import describe_unused_files, find_raw_cases, find_reader, read_dataset_json
from tests.encoders.tiny_datasets import write_labeled, write_sheared


def test_hidden_files_are_not_cases(tmp_path):
    folder = write_labeled(tmp_path / "Dataset001_Discs", 2)
    for name in ("imagesTr/._case_00_0000.png", "labelsTr/._case_00.png"):
        (folder / name).write_bytes(b"of macOS")
    cases = find_raw_cases(folder, read_dataset_json(folder / "dataset.json"))
    assert list(cases) == ["case_00", "case_01"]
    assert [len(case.images) for case in cases.values()] == [1, 1]


def test_unused_files_are_reported(tmp_path):
    folder = write_labeled(tmp_path / "Dataset001_Discs", 2)
    description = read_dataset_json(folder / "dataset.json")
    assert describe_unused_files(folder, find_raw_cases(folder, description).values()) == []
    assert describe_unused_files(folder, [], test=True) == []  # there are no test cases
    (folder / "imagesTr" / "case_02_0000.jpg").touch()
    (folder / "labelsTr" / "case_02.png").touch()
    assert describe_unused_files(folder, find_raw_cases(folder, description).values()) == [
        f"Skipped in {folder / 'imagesTr'}: case_02_0000.jpg.",
        f"Skipped in {folder / 'labelsTr'}: case_02.png.",
    ]


def test_cases_listed_in_dataset_json_are_used(tmp_path, monkeypatch):
    folder = write_labeled(tmp_path / "Dataset001_Discs", 2)
    description = read_dataset_json(folder / "dataset.json")
    listed = {"images": ["./imagesTr/case_00_0000.png"], "label": "./labelsTr/case_00.png"}
    (folder / "dataset.json").write_text(json.dumps({**description, "dataset": {"case_00": listed}}))
    cases = find_raw_cases(folder, read_dataset_json(folder / "dataset.json"))
    assert describe_unused_files(folder, cases.values()) == [
        f"Skipped in {folder / 'imagesTr'}: case_01_0000.png.",
        f"Skipped in {folder / 'labelsTr'}: case_01.png.",
    ]


@pytest.mark.parametrize("sheared", [True, False])
def test_nifti_is_read_by_the_first_reader_that_can(tmp_path, capfd, sheared):
    """The traceback of the reader that fails, which nnU-Net would print, is suppressed."""
    folder = write_sheared(tmp_path / "Dataset001_Sheared")
    image = folder / "imagesTr" / "a_0000.nii.gz"
    if not sheared:
        nibabel.save(nibabel.Nifti1Image(np.zeros((5, 6, 7), np.uint8), np.eye(4)), image)
    assert find_reader(read_dataset_json(folder / "dataset.json"), str(image)) is (
        NibabelIO if sheared else SimpleITKIO
    )
    assert "Traceback" not in capfd.readouterr().err
