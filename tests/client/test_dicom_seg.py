"""Label maps written as DICOM SEG: highdicom reads them, with references to the image."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

from hrmedseg_onnx.dicom import read_dicom  # noqa: E402
from hrmedseg_onnx.dicom_seg import class_names, write_label_map  # noqa: E402
from hrmedseg_onnx.errors import DataError, SetupError  # noqa: E402
from nnunet_hrmedseg.io.dicom_copies import write_label_map_like  # noqa: E402
from nnunet_hrmedseg.io.dicom_seg import read_label_map  # noqa: E402
from tests.io.dicom_files import radiograph, save_dicom, save_enhanced  # noqa: E402

SAMPLES = Path(pydicom.data.__path__[0]) / "test_files"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4096, (30, 41), dtype=np.uint16)


def test_segmentation_refers_to_its_image(tmp_path, pixels):
    source = radiograph(tmp_path / "x.dcm", pixels)
    labels = np.random.default_rng(2).integers(0, 3, (1, 30, 41))
    write_label_map(labels, tmp_path / "y.dcm", source, {1: "lungs", 2: "heart", 3: "clavicles"})
    made, image = highdicom.seg.segread(tmp_path / "y.dcm"), pydicom.dcmread(source)
    assert [segment.SegmentLabel for segment in made.SegmentSequence] == ["lungs", "heart", "clavicles"]
    assert made.PatientID == "P1" and made.StudyInstanceUID == image.StudyInstanceUID
    assert made.SeriesInstanceUID != image.SeriesInstanceUID
    (series,) = made.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == image.SeriesInstanceUID
    assert made.get_source_image_uids() == [
        (image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID),
    ]
    read = made.get_pixels_by_source_instance(
        [image.SOPInstanceUID], combine_segments=True, ignore_spatial_locations=True
    )
    assert np.array_equal(read, labels)


def test_empty_labels_give_a_segmentation(tmp_path, pixels):
    source = radiograph(tmp_path / "x.dcm", pixels)
    write_label_map(np.zeros((1, 30, 41), int), tmp_path / "y.dcm", source)
    made = highdicom.seg.segread(tmp_path / "y.dcm")
    assert made.number_of_segments == 1 and not made.pixel_array.any()


@pytest.mark.parametrize(
    ("kind", "positions"),
    [
        ("US video", None),
        ("XA", None),
        ("Enhanced CT", (0, 1, 2, 3, 4)),
        ("Tomosynthesis", (4, 0, 3, 1, 2)),
        ("Enhanced CT", (0, 0, 0, 0, 0)),  # of the same slice at several times
    ],
)
def test_each_frame_of_a_video_has_its_labels(tmp_path, kind, positions):
    frames = np.random.default_rng(1).integers(0, 200, (5, 20, 30), dtype=np.uint8)
    if positions is None:
        source = save_dicom(tmp_path / "x.dcm", frames, kind)
    else:
        source = save_enhanced(tmp_path / "x.dcm", frames, kind, positions=positions)
    labels = (frames > 100) + (frames > 150).astype(int)
    labels[3] = 0
    write_label_map(labels, tmp_path / "y.dcm", source, {1: "a", 2: "b"})
    made = highdicom.seg.segread(tmp_path / "y.dcm")
    assert ("FrameOfReferenceUID" in made) == (len({*(positions or ())}) > 1)
    read = made.get_pixels_by_source_frame(
        pydicom.dcmread(source).SOPInstanceUID, [4, 1, 5, 2, 3], combine_segments=True, ignore_spatial_locations=True
    )
    assert np.array_equal(read, labels[[3, 0, 4, 1, 2]])


@pytest.mark.parametrize("kind", ["US video", "XA"])
@pytest.mark.parametrize("shape", [(1, 20, 30), (20, 30)])  # with and without NumberOfFrames
def test_video_of_one_frame_has_a_segmentation(tmp_path, kind, shape, recwarn):
    source = save_dicom(tmp_path / "x.dcm", np.zeros(shape, np.uint8), kind)
    labels = np.random.default_rng(1).integers(0, 3, (1, 20, 30))
    write_label_map(labels, tmp_path / "y.dcm", source, {1: "a", 2: "b"})
    made = highdicom.seg.segread(tmp_path / "y.dcm")
    assert not recwarn and "FrameOfReferenceUID" not in made
    assert np.array_equal(read_label_map(tmp_path / "y.dcm"), labels)
    write_label_map_like(labels[:, ::-1], tmp_path / "z.dcm", tmp_path / "y.dcm")  # as nnU-Net's postprocessing
    assert np.array_equal(read_label_map(tmp_path / "z.dcm"), labels[:, ::-1]) and not recwarn


@pytest.mark.parametrize("frames", [1, 3])
def test_image_to_which_no_segmentation_can_refer(tmp_path, frames, recwarn):
    """The study is missing, as after a careless anonymization."""
    image = pydicom.dcmread(save_dicom(tmp_path / "x.dcm", np.zeros((frames, 20, 30), np.uint8), "US video"))
    del image.StudyInstanceUID
    image.save_as(tmp_path / "x.dcm")
    labels = np.random.default_rng(1).integers(0, 3, (frames, 20, 30))
    write_label_map(labels, tmp_path / "y.dcm", tmp_path / "x.dcm")
    (warning,) = recwarn
    assert "of the class Ultrasound Multi-frame Image Storage" in str(warning.message)
    assert "StudyInstanceUID" in str(warning.message) and "secondary capture" in str(warning.message)
    made = read_dicom(tmp_path / "y.dcm")
    assert np.array_equal(made.pixels, labels)
    assert made.header.SourceImageSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID


def test_labels_of_another_size_are_rejected(tmp_path, pixels):
    source = radiograph(tmp_path / "x.dcm", pixels)
    with pytest.raises(DataError, match="1 x 30 x 41"):
        write_label_map(np.zeros((1, 30, 40), int), tmp_path / "y.dcm", source)
    assert [file.name for file in tmp_path.iterdir()] == ["x.dcm"]


def test_missing_package_is_reported(tmp_path, pixels, monkeypatch):
    source = radiograph(tmp_path / "x.dcm", pixels)
    monkeypatch.setitem(sys.modules, "highdicom.seg", None)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(SetupError, match="highdicom is not installed, and writing DICOM SEG needs it: pip install"):
        write_label_map(np.zeros((1, 30, 41), int), tmp_path / "y.dcm", source)
    assert not (tmp_path / "y.dcm").exists()


def test_class_names_are_read_from_labels():
    labels = {"background": 0, "disc": [1, 2], "cup": 2, "ignore": 3}
    assert class_names(labels) == {2: "cup"}


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("name", ["CT_small.dcm", "examples_rgb_color.dcm", "examples_ybr_color.dcm", "JPEG2000.dcm"])
def test_segmentations_conform_to_the_standard(tmp_path, name):
    labels = np.random.default_rng(3).integers(0, 4, read_dicom(SAMPLES / name).pixels.shape[:3])
    write_label_map(labels, tmp_path / "y.dcm", SAMPLES / name)
    done = subprocess.run(["dciodvfy", "-new", tmp_path / "y.dcm"], capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    assert "Segmentation" in lines and not [line for line in lines if line.startswith("Error")]
