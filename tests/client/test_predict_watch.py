"""A watched folder: complete images are predicted once, changed ones again, and failures are reported once."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrmedseg_onnx import FolderWatch, OnnxModel, cli, predict
from hrmedseg_onnx.errors import DataError, SetupError
from tests.deployment.tiny_models import blobs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(pictures) -> OnnxModel:
    return OnnxModel(pictures.folder, folds=[0], mirror=False, threads=1)


class Watched:
    """A watched folder `folder`, its output `masks`, and the lines that were logged."""

    def __init__(self, model: OnnxModel, place: Path, **options) -> None:
        self.folder, self.masks = place / "incoming", place / "masks"
        self.folder.mkdir(exist_ok=True)
        self.lines: list[str] = []
        self.failures: list[str] = []
        self.watch = FolderWatch(
            model, self.folder, self.masks, log=self.lines.append, log_failure=self.failures.append, **options
        )

    def poll(self, times: int = 2) -> list[str]:
        """Poll, and return the names of the label maps that were written in order."""
        start = len(self.lines)
        for _ in range(times):
            self.watch.poll()
        return [Path(line).name for line in self.lines[start:] if line.startswith(str(self.masks))]


@pytest.fixture
def watched(model, tmp_path) -> Watched:
    return Watched(model, tmp_path)


def photo(seed: int = 0, kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.moveaxis(blobs(np.random.default_rng(seed), (50, 70), 3), 0, -1)).save(stream, kind)
    return stream.getvalue()


def test_images_are_predicted_as_they_arrive(watched, model):
    assert watched.poll() == [] and not watched.masks.exists()
    (watched.folder / "b.jpg").write_bytes(photo())
    assert watched.poll() == ["b.png"]
    (watched.folder / "a.jpg").write_bytes(photo(1))
    assert watched.poll(3) == ["a.png"]
    labels = np.asarray(Image.open(watched.masks / "a.png"))
    np.testing.assert_array_equal(labels, model.predict(watched.folder / "a.jpg").labels[0])
    assert (watched.watch.predicted, watched.watch.failed, watched.failures) == (2, 0, [])


def test_file_is_not_read_while_it_grows(watched):
    content = photo()
    file = watched.folder / "slow.jpg"
    for part in range(1, 5):
        file.write_bytes(content[: len(content) * part // 5])
        assert watched.poll(1) == []
    file.write_bytes(content)
    assert watched.poll(1) == []
    assert watched.poll(1) == ["slow.png"]
    assert watched.failures == []


def test_failure_is_reported_once_and_tried_again_after_a_change(watched):
    file = watched.folder / "a.jpg"
    file.write_bytes(photo()[:900])
    (watched.folder / "b.jpg").write_bytes(photo(1))
    assert watched.poll(5) == ["b.png"]
    (failure,) = watched.failures
    assert failure.startswith("a FAILED: ") and "a.jpg cannot be read" in failure
    assert [file.name for file in watched.masks.iterdir()] == ["b.png"]
    file.write_bytes(photo())
    assert watched.poll(5) == ["a.png"] and len(watched.failures) == 1


def test_changed_image_is_predicted_again(watched):
    """Even if its time is older than that of its label map, as that of a copy may be."""
    file = watched.folder / "a.jpg"
    file.write_bytes(photo())
    assert watched.poll() == ["a.png"]
    file.write_bytes(photo(1))
    os.utime(file, (1e9, 1e9))
    assert watched.poll(3) == ["a.png"]


def test_label_maps_of_an_earlier_run_are_kept(watched, model, tmp_path):
    for name in "abc":
        (watched.folder / f"{name}.jpg").write_bytes(photo())
    assert watched.poll() == ["a.png", "b.png", "c.png"]
    newer = (watched.masks / "a.png").stat().st_mtime + 10
    os.utime(watched.folder / "b.jpg", (newer, newer))
    (watched.masks / "c.png").unlink()
    later = Watched(model, tmp_path)
    assert later.poll(4) == ["b.png", "c.png"]
    assert [line for line in later.lines if "newer" in line] == [
        "Not predicted: 1 of 3, which have a label map newer than the image."
    ]


def test_removed_and_temporary_files_are_not_named(watched):
    (watched.folder / ".rsync.a.jpg").touch()
    (watched.folder / "a.jpg.part").touch()
    watched.poll(1)
    (watched.folder / "a.jpg.part").unlink()
    (watched.folder / "notes.txt").touch()
    (watched.folder / "a.jpg").write_bytes(photo())
    watched.poll(1)
    (watched.folder / "a.jpg").unlink()
    assert watched.poll(3) == []
    assert watched.lines == [f"Skipped in {watched.folder}: notes.txt."] and watched.failures == []


def test_channels_may_arrive_one_after_the_other(watched):
    """Files with nnU-Net's names: a case without all its channels fails, until the others are there."""
    planes = blobs(np.random.default_rng(0), (50, 70), 3)
    for c, plane in enumerate(planes):
        Image.fromarray(plane).save(watched.folder / f"a_000{c}.png")
        assert watched.poll(3) == (["a.png"] if c == 2 else [])
    assert len(watched.failures) == 2 and "Wrong number of channels" in watched.failures[0]


def test_equal_names_fail_until_one_is_renamed(watched):
    (watched.folder / "a.jpg").write_bytes(photo())
    (watched.folder / "a.webp").write_bytes(photo(1, "WEBP"))
    assert watched.poll(3) == [] and len(watched.failures) == 1
    assert "Several images would have the label map a.png" in watched.failures[0]
    (watched.folder / "a.webp").rename(watched.folder / "b.webp")
    assert watched.poll(3) == ["a.png", "b.png"]


def test_folder_that_is_away_for_a_while(watched, tmp_path):
    (watched.folder / "a.jpg").write_bytes(photo())
    assert watched.poll() == ["a.png"]
    watched.folder.rename(tmp_path / "away")
    assert watched.poll(3) == [] and len(watched.failures) == 1
    assert "cannot be read (No such file or directory). Trying again." in watched.failures[0]
    (tmp_path / "away").rename(watched.folder)
    (watched.folder / "b.jpg").write_bytes(photo())
    assert watched.poll(3) == ["b.png"]


def test_full_disk_ends_the_watch(watched, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    (watched.folder / "a.jpg").write_bytes(photo())
    monkeypatch.setattr(predict, "write_label_map", fail)
    with pytest.raises(SetupError, match="a.png could not be written"):
        watched.poll()


def test_label_maps_are_not_watched(model, tmp_path):
    (tmp_path / "linked").symlink_to(tmp_path)
    with pytest.raises(SetupError, match="would be watched"):
        FolderWatch(model, tmp_path, tmp_path / "linked")
    with pytest.raises(SetupError, match="would be watched"):
        FolderWatch(model, tmp_path, tmp_path / "masks", dicom_seg=True)
    with pytest.raises(DataError, match="nothing is not a folder"):
        FolderWatch(model, tmp_path / "nothing", tmp_path / "masks")


def test_run_sleeps_between_polls(watched):
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    (watched.folder / "a.jpg").write_bytes(photo())
    with pytest.raises(KeyboardInterrupt):
        watched.watch.run(0.5, sleep)
    assert slept == [0.5] * 3 and watched.watch.predicted == 1


# ---- DICOM -----------------------------------------------------------------------------------------------------------


def test_dicom_images_become_segmentations(model, tmp_path, monkeypatch):
    pytest.importorskip("highdicom")
    from hrmedseg_onnx import watch
    from tests.io.dicom_files import real_image, save_dicom

    watched = Watched(model, tmp_path, dicom_seg=True)
    looked_up = []
    monkeypatch.setattr(watch, "is_dicom_image", lambda f: looked_up.append(f.name) or f.name != "notes.txt")
    (watched.folder / "PA01").mkdir()
    (watched.folder / "notes.txt").write_text("of the day")
    save_dicom(watched.folder / "PA01" / "IM0001", real_image((50, 70)), "XC")
    assert watched.poll(4) == ["PA01_IM0001.dcm"]
    assert sorted(looked_up) == ["IM0001", "notes.txt"]
    shutil.copy(watched.folder / "PA01" / "IM0001", watched.folder / "PA01_IM0001")
    assert watched.poll(4) == [] and "Several images" in watched.failures[0]


# ---- command ---------------------------------------------------------------------------------------------------------


def test_command_ends_with_status_130_and_keeps_label_maps(pictures, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.jpg").write_bytes(photo())
    intervals = []

    def sleep(seconds):
        intervals.append(seconds)
        if len(intervals) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(FolderWatch.run, "__defaults__", (2.0, sleep))
    before = signal.getsignal(signal.SIGTERM)
    options = ["-i", tmp_path, "-o", tmp_path / "masks", "-m", pictures.folder, "--threads", 1, "--watch"]
    assert cli.main([*map(str, options), "--interval", "7"]) == 130
    printed = capsys.readouterr()
    assert "every 7 s" in printed.out and "1 predicted, 0 failed" in printed.out
    assert "interrupted. Finished label maps are kept." in printed.err
    assert intervals == [7, 7] and (tmp_path / "masks" / "a.png").is_file()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
def test_stopped_service_ends_with_status_130(pictures, tmp_path):
    (tmp_path / "in").mkdir()
    words = ["-i", tmp_path / "in", "-o", tmp_path / "masks", "-m", pictures.folder, "--threads", "1", "--watch"]
    with subprocess.Popen(
        [sys.executable, "-m", "hrmedseg_onnx", *words, "--interval", "0.01"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline().startswith("Watching")
        (tmp_path / "in" / ".a").write_bytes(photo())
        (tmp_path / "in" / ".a").rename(tmp_path / "in" / "a.jpg")
        assert process.stdout.readline() == f"{tmp_path / 'masks' / 'a.png'}\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "1 predicted, 0 failed" in out and "interrupted" in err
    assert [file.name for file in (tmp_path / "masks").iterdir()] == ["a.png"]
