"""Paths from another program: one line of answer for each, in order, whatever the path is."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrmedseg_onnx import OnnxModel, cli, predict_stream
from hrmedseg_onnx.errors import SetupError
from tests.deployment.tiny_models import blobs

pytestmark = pytest.mark.slow

PLANES = blobs(np.random.default_rng(0), (50, 70), 3)


@pytest.fixture(scope="module")
def model(pictures) -> OnnxModel:
    return OnnxModel(pictures.folder, folds=[0], mirror=False, threads=1)


@pytest.fixture
def photo(tmp_path) -> Path:
    file = tmp_path / "photo.jpg"
    Image.fromarray(np.moveaxis(PLANES, 0, -1)).save(file)
    return file


def answers(model: OnnxModel, output: Path, *lines: object, **options) -> list[str]:
    given: list[str] = []
    predicted, failed = predict_stream(model, (f"{line}\n" for line in lines), output, answer=given.append, **options)
    assert predicted == sum(not answer.startswith("FAILED: ") for answer in given)
    assert predicted + failed == len(given)
    return given


def test_each_line_is_answered_before_the_next_is_read(model, photo, tmp_path):
    events: list[str] = []

    def lines():
        for name in ("photo.jpg", "missing.jpg", "photo.jpg"):
            events.append(name)
            yield f"{tmp_path / name}\r\n"

    label_map = str(tmp_path / "masks" / "photo.png")
    assert predict_stream(model, lines(), tmp_path / "masks", answer=events.append) == (2, 1)
    assert events[0::2] == ["photo.jpg", "missing.jpg", "photo.jpg"]
    assert events[1] == events[5] == label_map
    assert events[3].startswith("FAILED: ") and "missing.jpg does not exist" in events[3]
    np.testing.assert_array_equal(np.asarray(Image.open(label_map)), model.predict(photo).labels[0])


def test_channels_of_an_image_are_a_json_list(model, photo, tmp_path, monkeypatch):
    files = [str(tmp_path / f"a_000{c}.png") for c in range(3)]
    for file, plane in zip(files, PLANES, strict=True):
        Image.fromarray(plane).save(file)
    bracket = photo.rename(tmp_path / "[photo].jpg")
    monkeypatch.chdir(tmp_path)
    given = answers(model, tmp_path / "masks", json.dumps(files), json.dumps(files[:2]), bracket.name, "[]", "[" * 9999)
    assert given[0] == str(tmp_path / "masks" / "a.png")
    assert "2 files are not the 3 channels of one image" in given[1]
    assert given[2] == str(tmp_path / "masks" / "[photo].png")
    assert all(answer.startswith("FAILED: ") for answer in given[3:])


def test_whatever_the_lines_are_they_are_answered(model, photo, tmp_path):
    (tmp_path / "half.jpg").write_bytes(photo.read_bytes()[:900])
    (tmp_path / ".hidden.jpg").touch()
    lines = [tmp_path, tmp_path / "half.jpg", tmp_path / ".hidden.jpg", "a\0b.jpg", "a" * 5000, tmp_path / "a.heic"]
    given = answers(model, tmp_path / "masks", *lines, "", "   ", f"\ufeff{photo}")
    assert [answer.startswith("FAILED: ") for answer in given] == [True] * 6 + [False]
    assert "is a folder" in given[0] and "cannot be read" in given[1]
    assert not any("\n" in answer for answer in given)
    assert [file.name for file in (tmp_path / "masks").iterdir()] == ["photo.png"]


def test_no_label_map_replaces_another_or_an_image(model, photo, tmp_path):
    (tmp_path / "day_2").mkdir()
    other = tmp_path / "day_2" / "photo.jpg"
    other.write_bytes(photo.read_bytes())
    png = tmp_path / "photo.png"
    Image.fromarray(np.moveaxis(PLANES, 0, -1)).save(png)
    before = png.read_bytes()
    given = answers(model, tmp_path / "masks", photo, other, photo)
    assert given[0] == given[2] and "already the label map of" in given[1]
    given = answers(model, tmp_path, png, photo)
    assert all("would be overwritten" in answer for answer in given) and png.read_bytes() == before
    given = answers(model, tmp_path / "day_2", other, other)
    assert given == [str(tmp_path / "day_2" / "photo.png")] * 2


def test_dicom_images_become_segmentations(model, photo, tmp_path):
    pytest.importorskip("highdicom")
    from tests.io.dicom_files import real_image, save_dicom

    save_dicom(tmp_path / "IM0001", real_image((50, 70)), "XC")
    given = answers(model, tmp_path / "out", tmp_path / "IM0001", photo, dicom_seg=True)
    assert given[0] == str(tmp_path / "out" / "IM0001.dcm") and "not a DICOM file" in given[1]


def test_output_that_cannot_be_written_ends_the_stream(model, photo):
    with pytest.raises(SetupError):
        answers(model, photo, photo)


# ---- command ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--stream"], ["-i", "-"]])
def test_command_prints_answers_alone_to_standard_output(pictures, photo, tmp_path, monkeypatch, capsys, words):
    options = ["-o", str(tmp_path / "masks"), "-m", str(pictures.folder), "--threads", "1", "-f", "0"]
    for lines, status in ((f"{photo}\nmissing.jpg", 1), (f"{photo}\n", 0), ("", 0)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
        assert cli.main([*words, *options]) == status
        printed = capsys.readouterr()
        assert printed.out.splitlines()[:1] == ([str(tmp_path / "masks" / "photo.png")] if lines else [])
        assert len(printed.out.splitlines()) == len(lines.split()) and "predicted, in" in printed.err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow only text as file names")
def test_another_program_drives_the_command(pictures, photo, tmp_path):
    """Answers arrive while standard input is open; names may have bytes that are not text."""
    odd = os.path.join(os.fsencode(tmp_path), b"IMG_\xff.jpg")
    os.rename(photo, odd)
    words = ["--stream", "-o", tmp_path / "masks", "-m", pictures.folder, "--threads", "1", "-f", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "hrmedseg_onnx", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for _ in range(2):
            process.stdin.write(odd + b"\n")
            process.stdin.flush()
            assert os.path.isfile(process.stdout.readline().removesuffix(b"\n"))
        process.stdin.close()
        assert process.wait(timeout=60) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow only text as file names")
def test_names_that_are_not_text_are_printed(pictures, photo, tmp_path):
    os.rename(photo, os.path.join(os.fsencode(tmp_path), b"IMG_\xff.jpg"))
    done = subprocess.run(
        [sys.executable, "-m", "hrmedseg_onnx", "-i", tmp_path, "-o", tmp_path / "masks", "-m", pictures.folder],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and r"IMG_\xff.png" in done.stdout, done.stderr
