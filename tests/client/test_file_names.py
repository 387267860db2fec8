from __future__ import annotations

import pytest

from hrmedseg_onnx.file_names import case_and_channel


@pytest.mark.parametrize(
    ("file_name", "file_ending", "expected"),
    [
        ("case_0000.png", ".png", ("case", 0)),
        ("case_0012.nii.gz", ".nii.gz", ("case", 12)),
        ("case.with.dots_0001.png", ".png", ("case.with.dots", 1)),
        ("IMG_0007_0000.png", ".png", ("IMG_0007", 0)),
        ("case_0000", "", ("case", 0)),
        ("two\nlines_0000.png", ".png", ("two\nlines", 0)),
        ("case.png", ".png", None),
        ("case_000.png", ".png", None),
        ("case_00000.png", ".png", None),
        ("case0000.png", ".png", None),
        ("_0000.png", ".png", None),
        ("case_0000.png", ".jpg", None),
        ("case_0000xpng", ".png", None),
        ("case_0000.png.bak", ".png", None),
        ("case_0000.png", "", None),
    ],
)
def test_case_and_channel_of_a_file(file_name: str, file_ending: str, expected: tuple[str, int] | None) -> None:
    assert case_and_channel(file_name, file_ending) == expected
