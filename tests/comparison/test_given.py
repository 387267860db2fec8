from pathlib import Path

import pytest

from nnunet_hrmedseg.comparison.given import _images_by_case


@pytest.mark.parametrize(
    ("files", "cases", "images"),
    [
        (["a_0000", "a_0001", "b_0000"], "ab", {"a": ["a_0000", "a_0001"], "b": ["b_0000"]}),
        (["image", "a_12"], "ab", {"image": ["image"], "a_12": ["a_12"]}),
        (["img_0001", "img_0002"], ["img_0001", "img_0002"], {"img_0001": ["img_0001"], "img_0002": ["img_0002"]}),
        (["img_0001_0000", "img_0001_0001"], ["img_0001"], {"img_0001": ["img_0001_0000", "img_0001_0001"]}),
        (["1.2.840_0000", "1.2.841"], ["1.2.840", "1.2.841"], {"1.2.840": ["1.2.840_0000"], "1.2.841": ["1.2.841"]}),
    ],
)
def test_images_are_of_the_case_that_their_names_say(
    tmp_path: Path, files: list[str], cases: list[str], images: dict[str, list[str]]
) -> None:
    for file in files:
        (tmp_path / f"{file}.png").touch()
    found = _images_by_case(tmp_path, ".png", cases)
    assert found == {case: [tmp_path / f"{file}.png" for file in of_case] for case, of_case in images.items()}
