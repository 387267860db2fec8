"""Label maps in DICOM without their images: nnU-Net's postprocessing, and raw data that was moved or is absent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

from nnunet_hrmedseg.errors import DataError  # noqa: E402
from nnunet_hrmedseg.io.dicom_copies import write_label_map_like, write_label_map_without_image  # noqa: E402
from nnunet_hrmedseg.io.dicom_reader import HRMedSegDicomIO  # noqa: E402
from nnunet_hrmedseg.io.dicom_seg import SEGMENTATION, read_label_map, write_label_map  # noqa: E402
from nnunet_hrmedseg.nnunet_versions import nnunet_folders  # noqa: E402
from tests.io.dicom_files import radiograph, save_dicom, save_enhanced  # noqa: E402

SAMPLES = Path(pydicom.data.__path__[0]) / "test_files"
NEW_IN_EACH_FILE = {
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "DimensionOrganizationUID",
    "InstanceCreationDate",
    "InstanceCreationTime",
    "ContentDate",
    "ContentTime",
    "ContributionDateTime",
    "PixelData",
}


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (4, 12, 14), dtype=np.uint8)


def attributes(file: Path) -> dict:
    """Return what two label maps of the same image have in common."""

    def of(dataset: pydicom.Dataset) -> dict:
        kept = [element for element in dataset if element.keyword not in NEW_IN_EACH_FILE]
        return {e.keyword: [of(item) for item in e.value] if e.VR == "SQ" else e.value for e in kept}

    made = pydicom.dcmread(file)
    # the series and the instances of the image, unlike those of the label map, do not change
    references = [series.SeriesInstanceUID for series in made.get("ReferencedSeriesSequence", [])]
    return {**of(made), "references": references}


def image(kind: str, folder: Path, frames: np.ndarray) -> Path:
    file = folder / "x.dcm"
    if kind == "DX":
        return radiograph(file, frames[0], Manufacturer="Maker", StationName="Room 1", PatientOrientation=["L", "F"])
    if kind.endswith(".dcm"):
        return SAMPLES / kind
    if kind.startswith("US"):
        return save_dicom(file, frames, kind)
    return save_enhanced(file, frames, kind, positions=(4, 0, 3, 1))


# ---- label maps made from other label maps ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["DX", "US video", "Enhanced CT", "Tomosynthesis", "CT_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm"]
)
def test_segmentation_made_from_a_segmentation_has_its_attributes(kind, tmp_path, frames):
    source = image(kind, tmp_path, frames)
    shape = (frames[:1] if kind == "DX" else frames if not kind.endswith(".dcm") else read_frames(source)).shape
    labels = np.random.default_rng(1).integers(0, 3, shape)
    write_label_map(labels, tmp_path / "y.dcm", source, {1: "a", 2: "b"})
    changed = np.where(labels == 2, 0, labels)
    write_label_map_like(changed, tmp_path / "z.dcm", tmp_path / "y.dcm", {1: "a", 2: "b"})
    assert pydicom.dcmread(tmp_path / "z.dcm").SOPClassUID == SEGMENTATION
    assert np.array_equal(read_label_map(tmp_path / "z.dcm"), changed)
    assert attributes(tmp_path / "z.dcm") == attributes(tmp_path / "y.dcm")
    assert pydicom.dcmread(tmp_path / "z.dcm").SOPInstanceUID != pydicom.dcmread(tmp_path / "y.dcm").SOPInstanceUID


def read_frames(source: Path) -> np.ndarray:
    header = pydicom.dcmread(source)
    return np.empty((int(header.get("NumberOfFrames") or 1), header.Rows, header.Columns))


def test_segmentation_made_from_one_without_its_empty_frames(tmp_path, frames):
    """Other programs leave empty frames out; the last frame has labels, so their number is known."""
    write_label_map((frames > 100).astype(int), tmp_path / "y.dcm", image("Enhanced CT", tmp_path, frames))
    made = pydicom.dcmread(tmp_path / "y.dcm")
    made.PixelData = pydicom.pixels.pack_bits(made.pixel_array[1:], pad=True)
    made.PerFrameFunctionalGroupsSequence = list(made.PerFrameFunctionalGroupsSequence)[1:]
    made.NumberOfFrames = 3
    made.save_as(tmp_path / "y.dcm")
    labels = read_label_map(tmp_path / "y.dcm")
    write_label_map_like(labels, tmp_path / "z.dcm", tmp_path / "y.dcm")
    assert np.array_equal(read_label_map(tmp_path / "z.dcm"), labels)


@pytest.mark.filterwarnings("ignore:No DICOM SEG")
def test_secondary_capture_gives_a_secondary_capture(tmp_path, recwarn):
    source = SAMPLES / "SC_rgb_rle_2frame.dcm"
    labels = np.random.default_rng(4).integers(0, 3, (2, 100, 100))
    write_label_map(labels, tmp_path / "y.dcm", source)
    recwarn.clear()
    write_label_map_like(labels // 2, tmp_path / "z.dcm", tmp_path / "y.dcm")
    assert not recwarn.list
    assert np.array_equal(read_label_map(tmp_path / "z.dcm"), labels // 2)
    assert attributes(tmp_path / "z.dcm") == attributes(tmp_path / "y.dcm")
    (reference,) = pydicom.dcmread(tmp_path / "z.dcm").SourceImageSequence
    assert reference.ReferencedSOPInstanceUID == pydicom.dcmread(source).SOPInstanceUID


def test_label_map_without_image_gives_another_one(tmp_path):
    write_label_map_without_image(np.ones((1, 8, 9), int), tmp_path / "y.dcm", (0.2, 0.1))
    write_label_map_like(np.zeros((1, 8, 9), int), tmp_path / "z.dcm", tmp_path / "y.dcm")
    made = pydicom.dcmread(tmp_path / "z.dcm")
    assert made.PixelSpacing == [0.2, 0.1] and made.PatientID == "" and "SourceImageSequence" not in made
    assert made.StudyInstanceUID == pydicom.dcmread(tmp_path / "y.dcm").StudyInstanceUID
    assert not read_label_map(tmp_path / "z.dcm").any()


def test_damaged_references_are_reported(tmp_path, frames):
    write_label_map(np.ones((1, 12, 14), int), tmp_path / "y.dcm", image("DX", tmp_path, frames))
    made = pydicom.dcmread(tmp_path / "y.dcm")
    del made.ReferencedSeriesSequence
    made.save_as(tmp_path / "y.dcm")
    with pytest.raises(DataError, match="y.dcm cannot be read"):
        write_label_map_like(np.ones((1, 12, 14), int), tmp_path / "z.dcm", tmp_path / "y.dcm")


# ---- nnU-Net's interface ---------------------------------------------------------------------------------------------


def name_classes(folder: Path, **labels: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **labels}}))


def segments(file: Path) -> list[str]:
    return [segment.SegmentLabel for segment in pydicom.dcmread(file).SegmentSequence]


def test_labels_that_were_read_are_written_with_their_names(tmp_path, frames):
    """The output, as in nnU-Net's postprocessing, is in a folder without dataset.json; one segment has no pixels."""
    source = radiograph(tmp_path / "x.dcm", frames[0])
    write_label_map((frames[:1] > 100).astype(int), tmp_path / "a.dcm", source, {1: "lungs", 2: "heart"})
    source.unlink()
    labels, properties = HRMedSegDicomIO().read_seg(str(tmp_path / "a.dcm"))
    HRMedSegDicomIO().write_seg(labels[0] * 0, str(tmp_path / "b.dcm"), properties)
    assert segments(tmp_path / "b.dcm") == ["lungs", "heart"]
    assert pydicom.dcmread(tmp_path / "b.dcm").PatientID == "P1"
    assert not read_label_map(tmp_path / "b.dcm").any()


def test_postprocessing_of_nnunet_writes_a_segmentation(tmp_path, frames):
    from nnunetv2.postprocessing import remove_connected_components as postprocessing

    labels = np.zeros((1, 12, 14), int)
    labels[0, 2:6, 2:6] = labels[0, 9, 9] = 1
    write_label_map(labels, tmp_path / "a.dcm", radiograph(tmp_path / "x.dcm", frames[0]), {1: "lungs"})
    step = postprocessing.remove_all_but_largest_component_from_segmentation
    files = (str(tmp_path / "a.dcm"), str(tmp_path / "b.dcm"))
    postprocessing.load_postprocess_save(*files, HRMedSegDicomIO(), [step], [{"labels_or_regions": [1]}])
    labels[0, 9, 9] = 0
    assert np.array_equal(read_label_map(tmp_path / "b.dcm"), labels)
    assert attributes(tmp_path / "b.dcm") == attributes(tmp_path / "a.dcm")


@pytest.mark.parametrize("place", ["read", "written"])
def test_numbered_segments_are_named_by_dataset_json(place, tmp_path, frames):
    name_classes(tmp_path / place, lungs=1, heart=2, clavicles=3)
    for folder in ("read", "written"):
        (tmp_path / folder).mkdir(exist_ok=True)
    source = radiograph(tmp_path / "x.dcm", frames[0])
    write_label_map((frames[:1] > 100).astype(int), tmp_path / "read" / "a.dcm", source, {2: "Herz"})
    labels, properties = HRMedSegDicomIO().read_seg(str(tmp_path / "read" / "a.dcm"))
    HRMedSegDicomIO().write_seg(labels[0], str(tmp_path / "written" / "a.dcm"), properties)
    assert segments(tmp_path / "written" / "a.dcm") == ["lungs", "Herz", "clavicles"]


def test_properties_of_another_reader_are_rejected(tmp_path):
    with pytest.raises(DataError, match="a.dcm cannot be written: its properties name neither"):
        HRMedSegDicomIO().write_seg(np.zeros((1, 8, 8)), str(tmp_path / "a.dcm"), {"spacing": (999, 1, 1)})


# ---- raw data that was moved or is absent ----------------------------------------------------------------------------


@pytest.fixture
def read(tmp_path, frames) -> dict:
    """Return the properties of an image in nnU-Net's raw folder `raw`."""
    folder = tmp_path / "raw" / "Dataset071_Discs" / "imagesTr"
    folder.mkdir(parents=True)
    return HRMedSegDicomIO().read_images([str(radiograph(folder / "a_0000.dcm", frames[0]))])[1]


@pytest.mark.parametrize("separator", ["/", "\\"])
def test_image_is_found_in_the_present_raw_folder(separator, tmp_path, frames, read, recwarn):
    """The preprocessed data may come from another system."""
    (tmp_path / "raw").rename(tmp_path / "elsewhere")
    read["dicom_source"] = read["dicom_source"].replace("/", separator)
    with nnunet_folders(nnUNet_raw=tmp_path / "elsewhere"):
        HRMedSegDicomIO().write_seg(frames[:1] > 100, str(tmp_path / "a.dcm"), read)
    made = pydicom.dcmread(tmp_path / "a.dcm")
    assert not recwarn.list and made.SOPClassUID == SEGMENTATION and made.PatientID == "P1"
    source = tmp_path / "elsewhere" / "Dataset071_Discs" / "imagesTr" / "a_0000.dcm"
    (reference,) = made.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert reference.ReferencedSOPInstanceUID == pydicom.dcmread(source).SOPInstanceUID


@pytest.mark.parametrize("left", ["the other images", "a folder outside of the raw data"])
def test_without_the_image_a_secondary_capture_is_written(left, tmp_path, frames, read):
    if left == "the other images":
        Path(read["dicom_source"]).unlink()
    else:
        read["dicom_source"] = str(tmp_path / "to_predict" / "a_0000.dcm")
    labels = (frames[:1] > 100).astype(int) + (frames[:1] > 150)
    message = r"The image .*a_0000.dcm was not found, .*raw\).*a.dcm is written without patient.* secondary capture"
    with nnunet_folders(nnUNet_raw=tmp_path / "raw"), pytest.warns(UserWarning, match=message):
        HRMedSegDicomIO().write_seg(labels, str(tmp_path / "a.dcm"), read)
    again, properties = HRMedSegDicomIO().read_seg(str(tmp_path / "a.dcm"))
    assert np.array_equal(again[0], labels) and properties["spacing"] == read["spacing"]
    made = pydicom.dcmread(tmp_path / "a.dcm")
    assert made.Modality == "OT" and made.PatientID == "" and made.StudyInstanceUID


def test_without_a_raw_folder_a_secondary_capture_is_written(tmp_path, frames, read, monkeypatch):
    Path(read["dicom_source"]).unlink()
    monkeypatch.setattr("nnunet_hrmedseg.io.dicom_reader.nnunet_folder", lambda name: None)
    with pytest.warns(UserWarning, match=r"nnUNet_raw \(not set\)"):
        HRMedSegDicomIO().write_seg(frames[:1] > 100, str(tmp_path / "a.dcm"), read)
    assert np.array_equal(read_label_map(tmp_path / "a.dcm"), frames[:1] > 100)
