"""Labels of a training as DICOM SEG, and nnU-Net's interface to DICOM."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

from nnunet_hrmedseg.errors import DataError  # noqa: E402
from nnunet_hrmedseg.io.dicom import read_dicom  # noqa: E402
from nnunet_hrmedseg.io.dicom_reader import HRMedSegDicomIO  # noqa: E402
from nnunet_hrmedseg.io.dicom_seg import read_label_map, write_label_map  # noqa: E402
from tests.io.dicom_files import radiograph, save_dicom, save_enhanced  # noqa: E402

SAMPLES = Path(pydicom.data.__path__[0]) / "test_files"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4096, (30, 41), dtype=np.uint16)


# ---- label maps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_RLE.dcm", "examples_ybr_color.dcm", "image_dfl.dcm"])
def test_labels_of_samples_are_written_and_read(name, tmp_path):
    """One of the samples is a video of 30 frames."""
    shape = read_dicom(SAMPLES / name).pixels.shape[:3]
    labels = np.random.default_rng(3).integers(0, 4, shape)
    labels[-1] = 0
    write_label_map(labels, tmp_path / "y.dcm", SAMPLES / name)
    assert pydicom.dcmread(tmp_path / "y.dcm").SOPClassUID == SEGMENTATION
    assert np.array_equal(read_label_map(tmp_path / "y.dcm"), labels)


@pytest.mark.parametrize("kind", ["Enhanced CT", "Tomosynthesis"])
def test_labels_of_enhanced_images_are_written_and_read(kind, tmp_path):
    frames = np.random.default_rng(4).integers(0, 4096, (3, 20, 30), dtype=np.uint16)
    source = save_enhanced(tmp_path / "x.dcm", frames, kind, [(1, -1024)])
    labels = (frames > 2000) + (frames > 3000).astype(int)
    write_label_map(labels, tmp_path / "y.dcm", source)
    assert np.array_equal(read_label_map(tmp_path / "y.dcm"), labels)


@pytest.mark.parametrize("highest", [3, 300])
@pytest.mark.filterwarnings("ignore:No DICOM SEG")
def test_labels_in_a_secondary_capture_are_read(highest, tmp_path):
    labels = np.random.default_rng(4).integers(0, highest + 1, (2, 100, 100))
    write_label_map(labels, tmp_path / "y.dcm", SAMPLES / "SC_rgb_rle_2frame.dcm")
    assert pydicom.dcmread(tmp_path / "y.dcm").SOPClassUID != SEGMENTATION
    assert np.array_equal(read_label_map(tmp_path / "y.dcm"), labels)


def test_labels_of_several_images_are_rejected(tmp_path):
    """A SEG of a series, as written by other programs, does not belong to a single image."""
    file = save_dicom(tmp_path / "x.dcm", np.zeros((8, 8), np.uint8), "DX")
    write_label_map(np.ones((1, 8, 8), int), tmp_path / "y.dcm", file)
    made = pydicom.dcmread(tmp_path / "y.dcm")
    made.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence = []
    other = copy.deepcopy(made.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0])
    other.ReferencedSOPInstanceUID = "1.2.3"
    made.ReferencedSeriesSequence[0].ReferencedInstanceSequence.append(other)
    made.save_as(tmp_path / "y.dcm")
    with pytest.raises(DataError, match="y.dcm is not a label map of one image"):
        read_label_map(tmp_path / "y.dcm")


# ---- nnU-Net's interface ---------------------------------------------------------------------------------------------


def test_reader_implements_the_interface_of_nnunet(tmp_path, pixels):
    reader = HRMedSegDicomIO()
    files = [str(radiograph(tmp_path / f"a_000{i}.dcm", pixels + i)) for i in range(2)]
    images, properties = reader.read_images(files)
    assert images.shape == (2, 1, 30, 41) and images.dtype == np.float32
    assert properties["spacing"] == (999.0, 0.2, 0.1)
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "lungs": "1", "ignore": 2}}')
    labels = (pixels > 2000)[None].astype(np.uint8)
    reader.write_seg(labels, str(tmp_path / "a.dcm"), properties)
    again, of_labels = reader.read_seg(str(tmp_path / "a.dcm"))
    assert of_labels["spacing"] == properties["spacing"]
    assert np.array_equal(again[0], labels) and again.shape == (1, 1, 30, 41)
    assert [segment.SegmentLabel for segment in pydicom.dcmread(tmp_path / "a.dcm").SegmentSequence] == ["lungs"]


def test_channels_of_different_sizes_are_rejected(tmp_path, pixels):
    files = [radiograph(tmp_path / "a.dcm", pixels), radiograph(tmp_path / "b.dcm", np.ascontiguousarray(pixels[1:]))]
    with pytest.raises(DataError, match="1 x 29 x 41 and 1 x 30 x 41"):
        HRMedSegDicomIO().read_images([str(file) for file in files])


@pytest.mark.parametrize("name", ["CT_small.dcm", "examples_rgb_color.dcm", "SC_rgb_rle_2frame.dcm"])
@pytest.mark.filterwarnings("ignore:No DICOM SEG")
def test_labels_have_the_spacing_of_their_image(name, tmp_path):
    reader = HRMedSegDicomIO()
    images, properties = reader.read_images([str(SAMPLES / name)])
    reader.write_seg(np.ones(images.shape[1:], int), str(tmp_path / "a.dcm"), properties)
    assert reader.read_seg(str(tmp_path / "a.dcm"))[1]["spacing"] == properties["spacing"]
