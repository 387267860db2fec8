"""DICOM read and written: pydicom's own sample files, and images of this package saved as radiographs."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

from pydicom.uid import RLELossless  # noqa: E402

from nnunet_hrmedseg.errors import DataError  # noqa: E402
from nnunet_hrmedseg.io.dicom import is_dicom, read_dicom  # noqa: E402
from nnunet_hrmedseg.io.dicom_reader import HRMedSegDicomIO  # noqa: E402
from nnunet_hrmedseg.io.dicom_seg import read_label_map, write_label_map  # noqa: E402
from tests.io.dicom_files import radiograph  # noqa: E402

SAMPLES = Path(pydicom.data.__path__[0]) / "test_files"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4096, (30, 41), dtype=np.uint16)


# ---- pixels ----------------------------------------------------------------------------------------------------------


def test_a_radiograph_and_its_spacing(tmp_path, pixels):
    image = read_dicom(radiograph(tmp_path / "x.dcm", pixels, BitsStored=12, HighBit=11))
    assert np.array_equal(image.pixels[0], pixels) and image.pixels.shape == (1, 30, 41)
    assert image.spacing == (0.2, 0.1)


def test_monochrome1_is_inverted_within_the_stored_bits(tmp_path, pixels):
    file = radiograph(tmp_path / "x.dcm", pixels, BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read_dicom(file).pixels[0], 4095 - pixels)


def test_rescale_slope_and_intercept(tmp_path, pixels):
    file = radiograph(tmp_path / "x.dcm", pixels, RescaleSlope="2", RescaleIntercept="-1024")
    assert np.array_equal(read_dicom(file).pixels[0], 2 * pixels.astype(int) - 1024)
    file = radiograph(tmp_path / "y.dcm", pixels, RescaleSlope="0.5", RescaleIntercept="0")
    assert np.allclose(read_dicom(file).pixels[0], 0.5 * pixels)


def test_run_length_encoding(tmp_path, pixels):
    image = pydicom.dcmread(radiograph(tmp_path / "x.dcm", pixels))
    image.compress(RLELossless)
    image.save_as(tmp_path / "y.dcm")
    assert np.array_equal(read_dicom(tmp_path / "y.dcm").pixels[0], pixels)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("examples_rgb_color.dcm", (1, 240, 320, 3)),
        ("examples_palette.dcm", (1, 350, 800, 3)),
        ("SC_ybr_full_422_uncompressed.dcm", (1, 100, 100, 3)),
        ("SC_rgb_rle_2frame.dcm", (2, 100, 100, 3)),
        ("MR_small_bigendian.dcm", (1, 64, 64)),
        ("image_dfl.dcm", (1, 512, 512)),
    ],
)
def test_samples_of_pydicom(name, shape):
    assert is_dicom(SAMPLES / name) and read_dicom(SAMPLES / name).pixels.shape == shape


def test_ybr_becomes_rgb():
    """The same picture stored as YBR and as RGB: red above, no blue."""
    colors = read_dicom(SAMPLES / "SC_ybr_full_422_uncompressed.dcm").pixels[0, 5, 50].astype(int)
    assert np.abs(colors - [254, 0, 0]).max() <= 2


# ---- what cannot be read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reportsi.dcm", "rtplan.dcm", "MR_truncated.dcm", "badVR.dcm", "no_meta.dcm"])
def test_files_without_readable_pixels_are_named(name):
    with pytest.raises(DataError, match=name):
        read_dicom(SAMPLES / name)


def test_a_file_that_declares_a_huge_image(tmp_path, pixels):
    file = radiograph(tmp_path / "x.dcm", pixels)
    image = pydicom.dcmread(file)
    image.Rows, image.Columns, image.NumberOfFrames = 65535, 65535, 1000
    image.save_as(file)
    with pytest.raises(DataError, match="65535"):
        read_dicom(file)


def test_damaged_files_raise_one_kind_of_error(tmp_path, pixels):
    """Bytes replaced anywhere: a result or a DataError, nothing else."""
    content = radiograph(tmp_path / "x.dcm", pixels).read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(content)
        for place in rng.integers(128, 700, 4):
            damaged[place] = int(rng.integers(256))
        (tmp_path / "y.dcm").write_bytes(damaged)
        try:
            read_dicom(tmp_path / "y.dcm")
        except DataError:
            pass


# ---- label maps ------------------------------------------------------------------------------------------------------


def test_a_segmentation_refers_to_its_image(tmp_path, pixels):
    source = radiograph(tmp_path / "x.dcm", pixels)
    labels = np.random.default_rng(2).integers(0, 3, (1, 30, 41))
    write_label_map(labels, tmp_path / "y.dcm", source, {1: "lungs", 2: "heart", 3: "clavicles"})
    assert np.array_equal(read_label_map(tmp_path / "y.dcm"), labels)
    made, image = highdicom.seg.segread(tmp_path / "y.dcm"), pydicom.dcmread(source)
    assert [segment.SegmentLabel for segment in made.SegmentSequence] == ["lungs", "heart", "clavicles"]
    assert made.PatientID == "P1" and made.StudyInstanceUID == image.StudyInstanceUID
    assert made.get_source_image_uids()[0][2] == image.SOPInstanceUID


def test_empty_labels_are_a_segmentation(tmp_path, pixels):
    source = radiograph(tmp_path / "x.dcm", pixels)
    write_label_map(np.zeros((1, 30, 41), int), tmp_path / "y.dcm", source)
    assert pydicom.dcmread(tmp_path / "y.dcm").SOPClassUID == SEGMENTATION
    assert not read_label_map(tmp_path / "y.dcm").any()


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_RLE.dcm", "examples_rgb_color.dcm", "image_dfl.dcm"])
def test_segmentations_of_samples(name, tmp_path):
    shape = read_dicom(SAMPLES / name).pixels.shape[:3]
    labels = np.random.default_rng(3).integers(0, 4, shape)
    write_label_map(labels, tmp_path / "y.dcm", SAMPLES / name)
    assert pydicom.dcmread(tmp_path / "y.dcm").SOPClassUID == SEGMENTATION
    assert np.array_equal(read_label_map(tmp_path / "y.dcm"), labels)


@pytest.mark.parametrize(("name", "highest"), [("SC_rgb_rle_2frame.dcm", 3), ("SC_rgb_rle_2frame.dcm", 300)])
def test_labels_of_a_video_are_a_grey_video(name, highest, tmp_path):
    labels = np.random.default_rng(4).integers(0, highest + 1, (2, 100, 100))
    with pytest.warns(UserWarning, match="video"):
        write_label_map(labels, tmp_path / "y.dcm", SAMPLES / name)
    assert np.array_equal(read_label_map(tmp_path / "y.dcm"), labels)


def test_labels_of_another_size(tmp_path, pixels):
    source = radiograph(tmp_path / "x.dcm", pixels)
    with pytest.raises(DataError, match="1 x 30 x 41"):
        write_label_map(np.zeros((1, 30, 40), int), tmp_path / "y.dcm", source)
    assert not (tmp_path / "y.dcm").exists()


# ---- nnU-Net's interface ---------------------------------------------------------------------------------------------


def test_the_reader_of_nnunet(tmp_path, pixels):
    reader = HRMedSegDicomIO()
    files = [str(radiograph(tmp_path / f"a_000{i}.dcm", pixels + i)) for i in range(2)]
    images, properties = reader.read_images(files)
    assert images.shape == (2, 1, 30, 41) and images.dtype == np.float32
    assert properties["spacing"] == (999.0, 0.2, 0.1)
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "lungs": 1}}')
    labels = (pixels > 2000)[None].astype(np.uint8)
    reader.write_seg(labels, str(tmp_path / "a.dcm"), properties)
    again, of_labels = reader.read_seg(str(tmp_path / "a.dcm"))
    assert of_labels["spacing"] == properties["spacing"]
    assert np.array_equal(again[0], labels) and again.shape == (1, 1, 30, 41)
    assert pydicom.dcmread(tmp_path / "a.dcm").SegmentSequence[0].SegmentLabel == "lungs"


def test_channels_of_different_sizes(tmp_path, pixels):
    files = [radiograph(tmp_path / "a.dcm", pixels), radiograph(tmp_path / "b.dcm", np.ascontiguousarray(pixels[1:]))]
    with pytest.raises(DataError, match="1 x 29 x 41 and 1 x 30 x 41"):
        HRMedSegDicomIO().read_images([str(file) for file in files])


def test_warnings_of_pydicom_stay_quiet(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_dicom(SAMPLES / "examples_rgb_color.dcm")


@pytest.mark.parametrize("name", ["CT_small.dcm", "examples_rgb_color.dcm", "SC_rgb_rle_2frame.dcm"])
@pytest.mark.filterwarnings("ignore:No DICOM SEG")
def test_labels_have_the_spacing_of_their_image(name, tmp_path):
    reader = HRMedSegDicomIO()
    images, properties = reader.read_images([str(SAMPLES / name)])
    reader.write_seg(np.ones(images.shape[1:], int), str(tmp_path / "a.dcm"), properties)
    assert reader.read_seg(str(tmp_path / "a.dcm"))[1]["spacing"] == properties["spacing"]
