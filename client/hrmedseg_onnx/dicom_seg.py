"""Label maps as DICOM Segmentation objects (SEG) that refer to the image they were made from."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hrmedseg_onnx import __version__
from hrmedseg_onnx.dicom import PACKAGES, SPACINGS, class_name, declared_shape, import_pydicom, read_header, reading
from hrmedseg_onnx.errors import DataError, format_shape, summarize_error
from hrmedseg_onnx.extras import import_package
from hrmedseg_onnx.files import atomic_path

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = [
    "class_names",
    "import_highdicom",
    "save_dicom",
    "secondary_capture",
    "write_label_map",
    "write_label_map_of_header",
]

NAME = "nnunet_hrmedseg"
SECONDARY_CAPTURE = {8: "1.2.840.10008.5.1.4.1.1.7.2", 16: "1.2.840.10008.5.1.4.1.1.7.3"}
"""Bits per pixel -> Multi-frame Grayscale Byte and Word Secondary Capture Image Storage."""
SERIES_NUMBER = 900
GEOMETRY = ("PixelSpacing", "FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient")


def write_label_map(labels: np.ndarray, file: Path, source: Path, names: Mapping[int, str] | None = None) -> None:
    """Write a label map as DICOM SEG, one binary segment per class, with patient, study and references of its image.

    Each frame of a video has its own frames in the SEG, which refer to it by its number.

    Where no SEG can be made, because the image lacks attributes that a SEG must copy, the labels become a secondary
    capture with one frame for each of the source and the class as the gray value, with a warning that states why.

    Args:
        labels: (frames, H, W) integers; 0 is background.
        file: DICOM file to write.
        source: DICOM image that the labels belong to.
        names: label value -> name of the class [default: the value].

    Raises:
        DataError: the labels do not have the shape of the image.
        SetupError: highdicom is not installed.
    """
    write_label_map_of_header(labels, file, read_header(source), source, names)


def write_label_map_of_header(
    labels: np.ndarray, file: Path, header: Dataset, source: Path, names: Mapping[int, str] | None = None
) -> None:
    """Write a label map as `write_label_map` does, for an image whose header is known.

    Args:
        labels: (frames, H, W) integers; 0 is background.
        file: DICOM file to write.
        header: attributes of the image.
        source: file from which they come, for messages.
        names: label value -> name of the class [default: the value].

    Raises:
        DataError: the labels do not have the shape of the image.
        SetupError: highdicom is not installed.
    """
    shape = declared_shape(header)
    if labels.shape != shape:
        raise DataError(
            f"The labels have {format_shape(labels.shape)} pixels (frames x rows x columns), {source} has "
            f"{format_shape(shape)}."
        )
    import_highdicom()
    with reading(source):
        made, problem = _made(labels, header, names or {})
    if problem:
        warnings.warn(
            f"No DICOM SEG can refer to {source}, {shape[0]} frame{'s' * (shape[0] > 1)} of the class "
            f"{class_name(header)} ({problem}). {file} is written as a secondary capture instead: a gray image with "
            f"the class of each pixel as its value.",
            stacklevel=3,
        )
    save_dicom(made, file)


def save_dicom(made: Dataset, file: Path) -> None:
    """Write a DICOM file, as a whole or not at all."""
    with atomic_path(file) as temporary:
        made.save_as(temporary, enforce_file_format=True)


def class_names(labels: Mapping[str, Any]) -> dict[int, str]:
    """Return label value -> name, by the labels of a dataset.json; without background, ignored pixels and regions."""
    return {
        value: str(name) for name, value in labels.items() if isinstance(value, int) and value > 0 and name != "ignore"
    }


def _made(labels: np.ndarray, header: Dataset, names: Mapping[int, str]) -> tuple[Dataset, str]:
    """Return a SEG; or, if there can be none, a secondary capture and the reason."""
    problem = ""
    for as_video in (False, True) if len(labels) == 1 else (True,):  # a video may have a single frame
        try:
            return _segmentation(labels, header, names, as_video=as_video), ""
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:  # attributes of any file
            problem = problem or summarize_error(error)
    return secondary_capture(labels, header), problem


def _segmentation(labels: np.ndarray, header: Dataset, names: Mapping[int, str], *, as_video: bool) -> Dataset:
    highdicom = import_highdicom()
    from pydicom.sr.codedict import codes

    highest = max(int(labels.max(initial=0)), *names, 1)
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=NAME, family=codes.DCM.ArtificialIntelligence, version=__version__
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=str(names.get(number, number))[:64],
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number in range(1, highest + 1)  # a SEG counts its segments without gaps
    ]
    source = _with_required_attributes(header)
    without_positions = as_video and not _is_volume(source)
    if without_positions:
        _place_frames(source)
    elif len(labels) == 1 and "SliceThickness" not in source and "SharedFunctionalGroupsSequence" not in source:
        # of a projection: a SEG would need a thickness to state where its pixels lie
        for name in GEOMETRY:
            if name in source:
                delattr(source, name)
    made = highdicom.seg.Segmentation(
        source_images=[source],
        pixel_array=labels.astype(np.uint16 if highest > 255 else np.uint8),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        series_number=SERIES_NUMBER,
        series_description=NAME,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=NAME,
        manufacturer_model_name=NAME,
        software_versions=__version__,
        device_serial_number="0",
        omit_empty_frames=False,
    )
    if without_positions:
        _number_frames(made)
    if "PlaneOrientationSequence" not in made.SharedFunctionalGroupsSequence[0]:
        made.PatientOrientation = header.get("PatientOrientation") or ""
    for name in SPACINGS:  # nnU-Net requires labels with the spacing of their image
        if name in header:
            setattr(made, name, header.get(name))
    return made


def _is_volume(source: Dataset) -> bool:
    """Return whether the frames have what highdicom needs to place them: one orientation and different positions."""
    groups = source.get("PerFrameFunctionalGroupsSequence") or []
    (shared, *_) = source.get("SharedFunctionalGroupsSequence") or [{}]
    if not groups or not all(
        ("FrameOfReferenceUID" in source, "PlaneOrientationSequence" in shared, "PixelMeasuresSequence" in shared)
    ):
        return False
    positions = [
        group.PlanePositionSequence[0].ImagePositionPatient for group in groups if "PlanePositionSequence" in group
    ]
    return len({tuple(position) for position in positions}) == len(groups)


def _place_frames(source: Dataset) -> None:
    """Give the frames of a video positions 1, 2, ..., because highdicom makes a SEG of several frames with positions.

    `_number_frames` removes them from the SEG.
    """
    highdicom = import_highdicom()
    pydicom = import_pydicom()
    shared, system = pydicom.Dataset(), highdicom.CoordinateSystemNames.PATIENT
    shared.PlaneOrientationSequence = highdicom.PlaneOrientationSequence(system, (1, 0, 0, 0, 1, 0))
    shared.PixelMeasuresSequence = highdicom.PixelMeasuresSequence((1, 1), slice_thickness=1)
    source.FrameOfReferenceUID, source.NumberOfFrames = highdicom.UID(), declared_shape(source)[0]
    source.SharedFunctionalGroupsSequence, source.PerFrameFunctionalGroupsSequence = [shared], []
    for number in range(1, declared_shape(source)[0] + 1):
        groups = pydicom.Dataset()
        groups.PlanePositionSequence = highdicom.PlanePositionSequence(system, (0, 0, number))
        source.PerFrameFunctionalGroupsSequence.append(groups)


def _number_frames(made: Dataset) -> None:
    """Replace the positions of `_place_frames` by the numbers of frames in a stack."""
    keyword = import_pydicom().datadict.tag_for_keyword
    for name in ("FrameOfReferenceUID", "PositionReferenceIndicator", "DimensionOrganizationType"):
        if name in made:
            delattr(made, name)
    del made.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    del made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    position = made.DimensionIndexSequence[-1]
    position.DimensionIndexPointer = keyword("InStackPositionNumber")
    position.FunctionalGroupPointer = keyword("FrameContentSequence")
    position.DimensionDescriptionLabel = "Frame of the video"
    for groups in made.PerFrameFunctionalGroupsSequence:
        del groups.PlanePositionSequence
        content = groups.FrameContentSequence[0]
        content.StackID, content.InStackPositionNumber = "1", content.DimensionIndexValues[-1]


def _with_required_attributes(header: Dataset) -> Dataset:
    """Return the header with the attributes that a SEG copies, empty where the image lacks them."""
    pydicom = import_pydicom()
    complete = pydicom.Dataset({element.tag: element for element in header if element.keyword != "PixelData"})
    complete.file_meta = header.file_meta
    for name in (
        "PatientID PatientName PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime "
        "ReferringPhysicianName"
    ).split():
        if name not in complete:
            setattr(complete, name, "")
    if not complete.get("Modality"):
        complete.Modality = "OT"
    return complete


def secondary_capture(labels: np.ndarray, header: Dataset) -> Dataset:
    """Return a secondary capture with the class of each pixel as its gray value.

    Args:
        labels: (frames, H, W) integers.
        header: attributes of the image. Without an instance UID, the secondary capture refers to no image.
    """
    pydicom = import_pydicom()
    bits = 8 if labels.max(initial=0) < 256 else 16
    made = pydicom.Dataset()
    study = (
        "PatientID PatientName PatientBirthDate PatientSex StudyInstanceUID StudyID StudyDate StudyTime "
        "AccessionNumber ReferringPhysicianName PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing"
    )
    complete = _with_required_attributes(header)
    for name in study.split():
        if name in complete:
            setattr(made, name, complete.get(name))
    for name in ("Laterality", "PatientOrientation"):
        setattr(made, name, header.get(name) or "")
    made.SOPClassUID, made.SOPInstanceUID = SECONDARY_CAPTURE[bits], pydicom.uid.generate_uid()
    made.SeriesInstanceUID, made.SeriesNumber, made.InstanceNumber = pydicom.uid.generate_uid(), SERIES_NUMBER, 1
    made.Modality, made.ConversionType, made.SeriesDescription = "OT", "WSD", NAME
    made.Manufacturer, made.SoftwareVersions, made.BurnedInAnnotation = NAME, __version__, "NO"
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.BitsAllocated, made.BitsStored, made.HighBit = bits, bits, bits - 1
    made.NumberOfFrames, made.Rows, made.Columns = labels.shape
    if len(labels) > 1:
        made.PageNumberVector = list(range(1, len(labels) + 1))
        made.FrameIncrementPointer = pydicom.datadict.tag_for_keyword("PageNumberVector")
    made.RescaleSlope, made.RescaleIntercept, made.RescaleType = 1, 0, "US"
    made.PresentationLUTShape = "IDENTITY"
    if "SOPInstanceUID" in header:
        reference = pydicom.Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        made.SourceImageSequence = [reference]
    content = np.ascontiguousarray(labels.astype(f"<u{bits // 8}")).tobytes()
    made.PixelData = content + b"\0" * (len(content) % 2)
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    return made


def import_highdicom() -> Any:
    """Return the module highdicom.

    Raises:
        SetupError: it is not installed.
    """
    import_package("highdicom.seg", PACKAGES, "writing DICOM SEG")
    return import_package("highdicom", PACKAGES, "writing DICOM SEG")
