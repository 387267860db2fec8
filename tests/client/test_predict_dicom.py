"""Prediction of DICOM files with exported models: label maps in the format of the model, and DICOM SEG."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

from pydicom.uid import RLELossless  # noqa: E402

from hrmedseg_onnx import cli  # noqa: E402
from hrmedseg_onnx.errors import DataError, SetupError  # noqa: E402
from hrmedseg_onnx.model import OnnxModel  # noqa: E402
from hrmedseg_onnx.predict import predict_files  # noqa: E402
from hrmedseg_onnx.sidecar import SIDECAR  # noqa: E402
from tests.io.dicom_files import real_image, save_dicom  # noqa: E402

pytestmark = pytest.mark.slow

SAMPLES = Path(pydicom.data.__path__[0]) / "test_files"
SIZE = (50, 70)


@pytest.fixture(scope="module")
def trained_with_dicom(pictures, tmp_path_factory) -> Path:
    """Return the model of `pictures`, as if its RGB images had been DICOM files."""
    return as_if_trained_with(".dcm", "HRMedSegDicomIO", pictures.folder, tmp_path_factory.mktemp("dicom") / "onnx")


def as_if_trained_with(file_ending: str, reader: str, model: Path, folder: Path) -> Path:
    """Copy a model with another format of images."""
    shutil.copytree(model, folder)
    content = json.loads((folder / SIDECAR).read_text())
    (folder / SIDECAR).write_text(json.dumps({**content, "image_reader": reader, "file_ending": file_ending}))
    return folder


@pytest.fixture
def images(tmp_path) -> Path:
    """Write a folder like scanners and archives: names without ending, folders, a directory file and a report."""
    folder = tmp_path / "images"
    (folder / "PA01" / "ST01").mkdir(parents=True)
    save_dicom(folder / "PA01" / "ST01" / "IM0001", real_image(SIZE), "XC")
    save_dicom(folder / "1.2.840.7.dcm", real_image(SIZE)[::-1], "US")
    shutil.copy(SAMPLES / "reportsi.dcm", folder / "report.dcm")
    shutil.copy(SAMPLES / "liver_1frame.dcm", folder / "liver.dcm")
    (folder / "notes.txt").write_text("of the day")
    (folder / ".trash").mkdir()
    for hidden in (folder / "._1.2.840.7.dcm", folder / ".trash" / "IM0002"):
        save_dicom(hidden, real_image(SIZE), "XC")
    return folder


def predicted(model: OnnxModel, image: np.ndarray) -> np.ndarray:
    return model.predict(image).labels


def read_seg(file: Path) -> np.ndarray:
    """Read a SEG with highdicom only: (Y, X) of its single source."""
    made = highdicom.seg.segread(file)
    (source,) = made.get_source_image_uids()
    read = made.get_pixels_by_source_instance([source[2]], combine_segments=True, ignore_spatial_locations=True)
    return read[0]


def test_folder_of_dicom_files_gives_segmentations(pictures, images, tmp_path, capsys):
    """The model was trained on PNG pictures."""
    options = ["-i", images, "-o", tmp_path / "out", "-m", pictures.folder, "--dicom_seg", "--threads", 1]
    assert cli.main(list(map(str, options))) == 0
    said = capsys.readouterr().out
    assert "2 of 2 predicted" in said
    assert "Skipped in" in said and "liver.dcm, notes.txt, report.dcm." in said
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["1.2.840.7.dcm", "PA01_ST01_IM0001.dcm"]
    model = OnnxModel(pictures.folder, threads=1)
    for case, file, image in (
        ("PA01_ST01_IM0001", images / "PA01" / "ST01" / "IM0001", real_image(SIZE)),
        ("1.2.840.7", images / "1.2.840.7.dcm", real_image(SIZE)[::-1]),
    ):
        made, source = highdicom.seg.segread(tmp_path / "out" / f"{case}.dcm"), pydicom.dcmread(file)
        assert [segment.SegmentLabel for segment in made.SegmentSequence] == ["gray", "bright"]
        assert made.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
        assert made.get_source_image_uids()[0][2] == source.SOPInstanceUID
        labels = predicted(model, image)
        assert np.array_equal(read_seg(tmp_path / "out" / f"{case}.dcm"), labels) and len(np.unique(labels)) > 1


def test_gray_channels_in_several_files(pictures, tmp_path):
    """Three DX files with nnU-Net's numbers are the channels of a case, stored inverted and compressed."""
    (tmp_path / "images").mkdir()
    for channel in range(3):
        stored = 4095 - real_image(SIZE)[..., channel].astype(np.uint16) * 16
        file = save_dicom(
            tmp_path / "images" / f"case_000{channel}.dcm",
            stored,
            "DX",
            PhotometricInterpretation="MONOCHROME1",
            BitsStored=12,
            HighBit=11,
            RescaleSlope="0.0625",
            RescaleIntercept="0",
        )
        image = pydicom.dcmread(file)
        image.compress(RLELossless)
        image.save_as(file)
    summary = predict_files(
        model=pictures.folder, inputs=[tmp_path / "images"], output=tmp_path / "out", dicom_seg=True
    )
    assert summary.label_maps == {"case": tmp_path / "out" / "case.dcm"}
    labels = predicted(OnnxModel(pictures.folder, threads=1), real_image(SIZE))
    assert np.array_equal(read_seg(tmp_path / "out" / "case.dcm"), labels)


def test_video_gives_a_segmentation_of_its_frames(pictures, tmp_path):
    video = np.stack([real_image(SIZE), real_image(SIZE)[::-1] // 2, real_image(SIZE)[:, ::-1]])
    file = save_dicom(tmp_path / "v.dcm", video, "US video")
    summary = predict_files(model=pictures.folder, inputs=[file], output=tmp_path / "out", dicom_seg=True)
    made = highdicom.seg.segread(summary.label_maps["v"])
    read = made.get_pixels_by_source_frame(
        pydicom.dcmread(file).SOPInstanceUID, [1, 2, 3], combine_segments=True, ignore_spatial_locations=True
    )
    labels = predicted(OnnxModel(pictures.folder, threads=1), np.moveaxis(video, -1, 0))
    assert np.array_equal(read, labels) and not np.array_equal(labels[0], labels[1])


def test_dicom_image_instead_of_a_picture(pictures, tmp_path):
    """Without --dicom_seg, the label map has the format of the model."""
    file = save_dicom(tmp_path / "x.dcm", real_image(SIZE), "XC")
    summary = predict_files(model=pictures.folder, inputs=[file], output=tmp_path / "out")
    labels = predicted(OnnxModel(pictures.folder, threads=1), real_image(SIZE))
    with Image.open(summary.label_maps["x"]) as written:
        assert written.format == "PNG" and np.array_equal(written, labels)
    assert np.array_equal(OnnxModel(pictures.folder, threads=1).predict(file).labels[0], labels)


def test_video_instead_of_a_picture(pictures, tmp_path):
    file = save_dicom(tmp_path / "x.dcm", np.stack([real_image(SIZE)] * 2), "US video")
    summary = predict_files(model=pictures.folder, inputs=[file], output=tmp_path / "out")
    assert "x.dcm is a video of 2 frames" in summary.failures["x"] and "--dicom_seg" in summary.failures["x"]


@pytest.mark.parametrize("dicom_seg", [False, True])
def test_model_trained_on_dicom(trained_with_dicom, tmp_path, dicom_seg):
    (tmp_path / "images").mkdir()
    save_dicom(tmp_path / "images" / "case_0000.dcm", real_image(SIZE), "XC")
    summary = predict_files(
        model=trained_with_dicom, inputs=[tmp_path / "images"], output=tmp_path / "out", dicom_seg=dicom_seg
    )
    labels = predicted(OnnxModel(trained_with_dicom, threads=1), real_image(SIZE))
    assert labels.shape == SIZE and np.array_equal(read_seg(summary.label_maps["case"]), labels)


def test_models_of_volumes_are_rejected(pictures, images, tmp_path):
    folder = as_if_trained_with(".nii.gz", "SimpleITKIO", pictures.folder, tmp_path / "model")
    with pytest.raises(
        DataError, match=r"--dicom_seg is for models .* trained with .nii.gz files, read by SimpleITKIO"
    ):
        predict_files(model=folder, inputs=[images], output=tmp_path / "out", dicom_seg=True)
    assert not (tmp_path / "out").exists()


def test_inputs_that_are_not_dicom_are_rejected(pictures, tmp_path):
    (tmp_path / "pictures").mkdir()
    picture = tmp_path / "pictures" / "a.png"
    Image.fromarray(real_image(SIZE)).save(picture)
    options = {"model": OnnxModel(pictures.folder, threads=1), "output": tmp_path / "out", "dicom_seg": True}
    with pytest.raises(DataError, match="a.png is not a DICOM file"):
        predict_files(inputs=[picture], **options)
    with pytest.raises(DataError, match="pictures holds no DICOM images. It holds a.png"):
        predict_files(inputs=[picture.parent], **options)
    with pytest.raises(DataError, match="nothing.dcm does not exist"):
        predict_files(inputs=[tmp_path / "nothing.dcm"], **options)


def test_no_image_is_overwritten_or_predicted_twice(pictures, images, tmp_path):
    file = images / "1.2.840.7.dcm"
    before = file.read_bytes()
    options = {"model": OnnxModel(pictures.folder, threads=1), "dicom_seg": True}
    with pytest.raises(SetupError, match="1.2.840.7.dcm would be overwritten"):
        predict_files(inputs=[images], output=images, **options)
    with pytest.raises(DataError, match=r"Several images would have the label map 1.2.840.7.dcm"):
        predict_files(inputs=[images, file], output=tmp_path / "out", **options)
    assert file.read_bytes() == before
    # segmentations beside the images are not images
    predict_files(inputs=[images], output=images / "out", **options)
    again = predict_files(inputs=[images], output=images / "out", **options)
    assert sorted(again.label_maps) == ["1.2.840.7", "PA01_ST01_IM0001"]


def test_bad_file_does_not_affect_the_others(pictures, images, tmp_path):
    save_dicom(images / "gray.dcm", real_image(SIZE)[..., 0], "DX")
    shutil.copy(SAMPLES / "MR_truncated.dcm", images / "cut_off.dcm")
    summary = predict_files(model=pictures.folder, inputs=[images], output=tmp_path / "out", dicom_seg=True)
    assert sorted(summary.failures) == ["cut_off", "gray"] and len(summary.label_maps) == 2
    assert "trained with 3 channels (R, G, B), this case has 1" in summary.failures["gray"]
    assert "cut_off.dcm cannot be read" in summary.failures["cut_off"]


@pytest.mark.parametrize("package", ["pydicom", "highdicom"])
def test_missing_packages_are_reported(pictures, images, tmp_path, capsys, monkeypatch, package):
    for name in (package, "pydicom.pixels", "highdicom.seg"):
        if name.startswith(package):
            monkeypatch.setitem(sys.modules, name, None)
    options = ["-i", images, "-o", tmp_path / "out", "-m", pictures.folder, "--dicom_seg", "--threads", 1]
    assert cli.main(list(map(str, options))) == 1
    assert f"{package} is not installed" in capsys.readouterr().err


# ---- hostile files ---------------------------------------------------------------------------------------------------


def test_names_in_dicom_files_are_not_used_as_paths(pictures, tmp_path):
    """Attributes that other programs use as paths or print are ignored: the label map has the name of the file."""
    (tmp_path / "images").mkdir()
    path = "../../escaped"
    save_dicom(
        tmp_path / "images" / "IM1",
        real_image(SIZE),
        "XC",
        PatientID=path,
        PatientName=path,
        StudyID="\x1b[2J",
        AccessionNumber="$(touch x)",
        ReferencedFileID=["..", "escaped"],
    )
    before = sorted(tmp_path.rglob("*"))
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predict_files(
            model=pictures.folder,
            inputs=[tmp_path / "images"],
            output=tmp_path / "out",
            dicom_seg=True,
            log=said.append,
            log_failure=said.append,
        )
    made = set(tmp_path.rglob("*")) - set(before)
    assert made == {tmp_path / "out", tmp_path / "out" / "IM1.dcm"}
    assert pydicom.dcmread(tmp_path / "out" / "IM1.dcm").PatientID == path
    assert not any("\x1b" in text for text in said)


def test_directory_file_is_not_followed(pictures, tmp_path):
    """A DICOMDIR may list paths outside of its folder."""
    folder = tmp_path / "images"
    shutil.copytree(SAMPLES / "dicomdirtests", folder, ignore=lambda _, names: {n for n in names if n != "DICOMDIR"})
    with pytest.raises(DataError, match="holds no DICOM images. It holds DICOMDIR"):
        predict_files(model=pictures.folder, inputs=[folder], output=tmp_path / "out", dicom_seg=True)


def test_damaged_files_fail_or_are_predicted(pictures, tmp_path):
    """Bytes replaced in the header: a result or one line, and nothing half-written."""
    content = save_dicom(tmp_path / "x.dcm", real_image((16, 16)), "XC").read_bytes()
    random, model = np.random.default_rng(3), OnnxModel(pictures.folder, folds=["0"], mirror=False, threads=1)
    for number in range(30):
        damaged = bytearray(content)
        for place in random.integers(132, len(content) - 768, 6):
            damaged[place] = int(random.integers(256))
        (tmp_path / "y.dcm").write_bytes(damaged)
        output = tmp_path / f"out_{number}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            summary = predict_files(model=model, inputs=[tmp_path / "y.dcm"], output=output, dicom_seg=True)
        assert [file.name for file in output.iterdir()] == ["y.dcm"] * len(summary.label_maps)
        for failure in summary.failures.values():
            assert "y.dcm" in failure or "channels" in failure, failure
