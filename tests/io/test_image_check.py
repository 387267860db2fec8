"""Files and values that nnU-Net's readers change; numbers of channels are tested with the preprocessor."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_hrmedseg.io.image_check import all_digits, has_palette, lines_of_pixels, warn_of_lost_bits
from tests.test_documentation import ROOT, blocks


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(0.9999999), "0.9999999"),
        (np.float64(0.9999999), "0.9999999"),
        (np.float32(1), "1"),
        (np.float32(123456789), "123456790"),
        (np.float64(-2), "-2"),
        (np.uint16(65535), "65535"),
    ],
)
def test_numbers_are_shown_with_all_digits(value, text):
    assert all_digits(value) == text


@pytest.mark.parametrize("shape", [(1, 1, 60), (1, 60, 1), (1, 1, 1), (5, 2, 60)])
def test_images_and_volumes_are_accepted(shape):
    assert lines_of_pixels(shape, "It has") is None


def test_single_lines_of_pixels_are_rejected():
    assert str(lines_of_pixels([128.0, 116.0, 1.0], "It has")).startswith("It has 128 slices of 116 x 1 pixels: ")


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"no picture", b"BM" + bytes(40)])
def test_files_that_are_not_images_are_left_to_the_reader(tmp_path, content, recwarn):
    file = tmp_path / "case.png"
    file.write_bytes(content)
    for path in (file, tmp_path / "absent.png"):
        assert not has_palette(path)
        warn_of_lost_bits([path])
    assert not recwarn.list


@pytest.mark.parametrize("mode", ["P", "L"])
def test_script_in_the_docs_keeps_labels(tmp_path, monkeypatch, mode):
    (script,) = [
        block for block in blocks(ROOT / "docs" / "reference" / "file-formats.md", "python") if "labelsTr" in block
    ]
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    label = Image.fromarray(labels)
    if mode == "P":
        label = label.convert("P")
        label.putpalette([value * 7 % 256 for value in range(36)])
    file = Path(tmp_path, "labelsTr", "case.png")
    file.parent.mkdir()
    label.save(file)
    assert has_palette(file) == (mode == "P")
    monkeypatch.chdir(tmp_path)
    exec(script, {})
    assert not has_palette(file)
    with Image.open(file) as saved:
        assert saved.mode == "L" and np.array_equal(np.asarray(saved), labels)
