"""Reading of DICOM images: sample files of pydicom, and images of this package saved as radiographs."""

from __future__ import annotations

import io
import struct
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pydicom = pytest.importorskip("pydicom")

from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import (  # noqa: E402
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from hrmedseg_onnx import dicom_limits  # noqa: E402
from hrmedseg_onnx.dicom import is_dicom, is_image, read_dicom  # noqa: E402
from hrmedseg_onnx.errors import DataError, SetupError  # noqa: E402
from tests.io.dicom_files import radiograph, real_image, save_dicom, save_enhanced  # noqa: E402

SAMPLES = Path(pydicom.data.__path__[0]) / "test_files"


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4096, (30, 41), dtype=np.uint16)


# ---- pixels ----------------------------------------------------------------------------------------------------------


def test_radiograph_is_read_with_its_spacing(tmp_path, pixels):
    image = read_dicom(radiograph(tmp_path / "x.dcm", pixels, BitsStored=12, HighBit=11))
    assert np.array_equal(image.pixels[0], pixels) and image.pixels.shape == (1, 30, 41)
    assert image.spacing == (0.2, 0.1)


def test_monochrome1_is_inverted_within_the_stored_bits(tmp_path, pixels):
    file = radiograph(tmp_path / "x.dcm", pixels, BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read_dicom(file).pixels[0], 4095 - pixels)


def test_rescale_slope_and_intercept_are_applied(tmp_path, pixels):
    file = radiograph(tmp_path / "x.dcm", pixels, RescaleSlope="2", RescaleIntercept="-1024")
    assert np.array_equal(read_dicom(file).pixels[0], 2 * pixels.astype(int) - 1024)
    file = radiograph(tmp_path / "y.dcm", pixels, RescaleSlope="0.5", RescaleIntercept="0")
    assert np.allclose(read_dicom(file).pixels[0], 0.5 * pixels)


@pytest.mark.parametrize("slopes", [[(2, -100)], [(2, -100), (3, 0), (1, 5)]], ids=["shared", "of each frame"])
def test_rescaling_of_enhanced_images_is_applied(tmp_path, slopes):
    """Slope and intercept are in the functional groups, not at the top."""
    frames = np.random.default_rng(1).integers(0, 4096, (3, 20, 30), dtype=np.uint16)
    image = read_dicom(save_enhanced(tmp_path / "x.dcm", frames, "Tomosynthesis", slopes))
    slope, intercept = np.array(slopes).T[:, :, None, None]
    assert np.array_equal(image.pixels, frames * slope + intercept)
    assert image.spacing == (0.2, 0.1)


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_modality_lookup_table_is_applied(tmp_path, photometric):
    table = pydicom.Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4, 0, 16], "US"
    table.LUTData = [10, 300, 2000, 4095]
    table["LUTData"].VR, table["LUTDescriptor"].VR = "US", "US"
    stored = np.array([[0, 1], [2, 3]], np.uint16)
    file = radiograph(tmp_path / "x.dcm", stored, PhotometricInterpretation=photometric, ModalityLUTSequence=[table])
    measured = np.array([[10, 300], [2000, 4095]])
    expected = measured if photometric == "MONOCHROME2" else 65535 - measured
    assert np.array_equal(read_dicom(file).pixels[0], expected)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_lossless_compression_is_read(tmp_path, syntax):
    pixels = real_image()[..., 1].astype(np.uint16) * 16
    image = pydicom.dcmread(radiograph(tmp_path / "x.dcm", pixels))
    image.compress(syntax)
    image.save_as(tmp_path / "y.dcm")
    assert np.array_equal(read_dicom(tmp_path / "y.dcm").pixels[0], pixels)


@pytest.mark.parametrize("kind", ["DX", "CR", "MG", "US", "XC", "US video"])
@pytest.mark.parametrize("colored", [False, True])
def test_kinds_of_images_are_read(tmp_path, kind, colored):
    image = real_image() if colored else real_image()[..., 1]
    stored = np.stack([image, image[::-1]]) if kind == "US video" else image
    read = read_dicom(save_dicom(tmp_path / "x.dcm", stored, kind))
    assert np.array_equal(read.pixels, stored.reshape(-1, *image.shape))
    expected = (3 if colored else 1, len(read.pixels), *image.shape[:2])
    assert read.channels.shape == expected and read.channels[0, 0, 5, 7] == image[5, 7].flat[0]


def test_color_jpeg_is_read(tmp_path):
    """As in photographs, the file is YBR and is read as RGB."""
    image, content = real_image(), io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=95, subsampling=0)
    file = compressed(tmp_path, content.getvalue(), JPEGBaseline8Bit, image)
    difference = np.abs(read_dicom(file).pixels[0].astype(int) - image)
    assert difference.mean() < 3 and difference.max() < 60


def compressed(folder: Path, content: bytes, syntax: str, pixels: np.ndarray) -> Path:
    """Save compressed pixels; `pixels` gives the size that the header declares."""
    image = pydicom.dcmread(save_dicom(folder / "x.dcm", pixels, "XC"))
    image.PixelData = encapsulate([content])
    image["PixelData"].VR = "OB"
    image.file_meta.TransferSyntaxUID = syntax
    if pixels.ndim == 3:
        image.PhotometricInterpretation = "YBR_FULL_422"
    image.save_as(folder / "x.dcm")
    return folder / "x.dcm"


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
def test_samples_of_pydicom_are_read(name, shape):
    assert is_dicom(SAMPLES / name) and read_dicom(SAMPLES / name).pixels.shape == shape


def test_ybr_becomes_rgb():
    """The same picture stored as YBR and as RGB: red above, no blue."""
    colors = read_dicom(SAMPLES / "SC_ybr_full_422_uncompressed.dcm").pixels[0, 5, 50].astype(int)
    assert np.abs(colors - [254, 0, 0]).max() <= 2


# ---- unreadable files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reportsi.dcm", "rtplan.dcm", "MR_truncated.dcm", "badVR.dcm", "no_meta.dcm"])
def test_files_without_readable_pixels_are_reported(name):
    with pytest.raises(DataError, match=name):
        read_dicom(SAMPLES / name)


def test_file_that_declares_a_huge_image_is_rejected(tmp_path, pixels):
    file = radiograph(tmp_path / "x.dcm", pixels)
    image = pydicom.dcmread(file)
    image.Rows, image.Columns, image.NumberOfFrames = 65535, 65535, 1000
    image.save_as(file)
    with pytest.raises(DataError, match="65535"):
        read_dicom(file)


def test_content_that_inflates_beyond_the_limit_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_limits, "MAX_INFLATED", 1 << 20)
    monkeypatch.setattr(dicom_limits, "_STEP", 1 << 18)
    black = np.zeros((1500, 1500), np.uint8)
    image = pydicom.dcmread(radiograph(tmp_path / "x.dcm", black))
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    image.save_as(tmp_path / "x.dcm")
    assert (tmp_path / "x.dcm").stat().st_size < 10_000
    with pytest.raises(DataError, match="x.dcm inflates to more than 1 MB"):
        read_dicom(tmp_path / "x.dcm")
    monkeypatch.undo()
    assert np.array_equal(read_dicom(tmp_path / "x.dcm").pixels[0], black)


@pytest.mark.parametrize(("name", "syntax"), [("JPEG", JPEGBaseline8Bit), ("JPEG2000", JPEG2000)])
def test_compressed_pixels_that_declare_a_larger_image_are_rejected(tmp_path, name, syntax):
    """A decoder would reserve memory for 3.6 billion pixels."""
    pixels, content = real_image((16, 24))[..., 0], io.BytesIO()
    Image.fromarray(pixels).save(content, name, **({"no_jp2": True} if name == "JPEG2000" else {}))
    assert read_dicom(compressed(tmp_path, content.getvalue(), syntax, pixels)).pixels.shape == (1, 16, 24)
    huge = bytearray(content.getvalue())
    if name == "JPEG":
        place = huge.find(b"\xff\xc0") + 5
        huge[place : place + 4] = struct.pack(">HH", 60000, 60000)
    else:
        huge[8:16] = struct.pack(">II", 60000, 60000)
    with pytest.raises(DataError, match="frame 1 has 60000 x 60000 pixels .* declares 16 x 24"):
        read_dicom(compressed(tmp_path, bytes(huge), syntax, pixels))


def test_missing_package_is_reported(tmp_path, pixels, monkeypatch):
    file = radiograph(tmp_path / "x.dcm", pixels)
    monkeypatch.setitem(sys.modules, "pydicom.pixels", None)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(SetupError, match="pydicom is not installed, and reading DICOM needs it: pip install"):
        read_dicom(file)


def test_messages_do_not_control_the_terminal(tmp_path):
    image = pydicom.dcmread(SAMPLES / "reportsi.dcm")
    image["SOPClassUID"].value = "1.2\x1b[2J"
    image.save_as(tmp_path / "x.dcm", enforce_file_format=False)
    with pytest.raises(DataError) as raised:
        read_dicom(tmp_path / "x.dcm")
    assert "x.dcm has no pixels: it is of the class 1.2?[2J" in str(raised.value)


def test_images_are_distinguished_from_other_files():
    images = {
        name for name in ("CT_small.dcm", "MR_truncated.dcm", "examples_ybr_color.dcm") if is_image(SAMPLES / name)
    }
    assert len(images) == 3
    for name in ("reportsi.dcm", "rtplan.dcm", "rtdose.dcm", "liver_1frame.dcm", "waveform_ecg.dcm"):
        assert is_dicom(SAMPLES / name) and not is_image(SAMPLES / name)
    assert not is_dicom(SAMPLES / "no_meta.dcm") and not is_dicom(SAMPLES / "README.txt")


def test_damaged_files_raise_only_data_error(tmp_path, pixels):
    """Replacing random bytes gives a result or a DataError, nothing else."""
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


def test_warnings_of_pydicom_are_suppressed(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_dicom(SAMPLES / "examples_rgb_color.dcm")
