"""Label maps as DICOM Segmentation objects (SEG) that refer to the image they were made from."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_hrmedseg import __version__
from nnunet_hrmedseg.errors import DataError, format_shape, summarize_error
from nnunet_hrmedseg.io.dicom import SPACINGS, declared_shape, import_pydicom, read_dicom, read_header
from nnunet_hrmedseg.io.extras import import_extra
from nnunet_hrmedseg.io.files import atomic_path

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["read_label_map", "write_label_map"]

NAME = "nnunet_hrmedseg"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
SECONDARY_CAPTURE = {8: "1.2.840.10008.5.1.4.1.1.7.2", 16: "1.2.840.10008.5.1.4.1.1.7.3"}
"""Bits per pixel -> Multi-frame Grayscale Byte and Word Secondary Capture Image Storage."""
SERIES_NUMBER = 900
GEOMETRY = ("PixelSpacing", "FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient")


def write_label_map(labels: np.ndarray, file: Path, source: Path, names: Mapping[int, str] | None = None) -> None:
    """Write a label map as DICOM SEG, one binary segment per class, with patient, study and references of its image.

    Where no SEG can be made, the labels become a secondary capture with one frame for each of the source and the class
    as the grey value, with a warning that states why: videos without a frame of reference, such as ultrasound, cannot
    be referred to by several frames, and images may lack attributes that a SEG must copy.

    Args:
        labels: (frames, H, W) integers; 0 is background.
        file: DICOM file to write.
        source: DICOM image that the labels belong to.
        names: label value -> name of the class [default: the value].

    Raises:
        DataError: the labels do not have the shape of the image.
        SetupError: highdicom is not installed.
    """
    header = read_header(source)
    shape = declared_shape(header)
    if labels.shape != shape:
        raise DataError(
            f"The labels have {format_shape(labels.shape)} pixels (frames x rows x columns), {source} has "
            f"{format_shape(shape)}."
        )
    _import_highdicom()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = _segmentation(labels, header, names or {})
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:  # attributes of any file
        warnings.warn(
            f"No DICOM SEG can refer to {source} ({summarize_error(error)}). {file} is written as a secondary capture "
            f"instead: a grey image with the class of each pixel as its value.",
            stacklevel=2,
        )
        made = _secondary_capture(labels, header)
    with atomic_path(file) as temporary:
        made.save_as(temporary, enforce_file_format=True)


def read_label_map(file: Path) -> np.ndarray:
    """Read a label map, (frames, H, W): from a SEG with the frames of one image, or from a grey DICOM image.

    Raises:
        DataError: it cannot be read, or its segments overlap or have no order.
        SetupError: pydicom or highdicom is not installed.
    """
    header = read_header(file)
    if header.get("SOPClassUID") != SEGMENTATION:
        pixels = read_dicom(file).pixels
        if pixels.ndim != 3:
            raise DataError(f"{file} is a color image; labels are a DICOM SEG or a grey image of class values.")
        return pixels
    highdicom = _import_highdicom()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            segmentation = highdicom.seg.segread(file)
            sources = segmentation.get_source_image_uids()
            if len(sources) != 1:
                raise ValueError(f"it refers to {len(sources)} images, not to one")
            (uid,) = (source[2] for source in sources)
            options: dict[str, Any] = {"combine_segments": True, "assert_missing_frames_are_empty": True}
            frames = _number_of_source_frames(segmentation)
            if frames > 1:
                numbers = list(range(1, frames + 1))
                return segmentation.get_pixels_by_source_frame(uid, numbers, ignore_spatial_locations=True, **options)
            return segmentation.get_pixels_by_source_instance([uid], ignore_spatial_locations=True, **options)
    except Exception as error:  # of any file
        raise DataError(f"{file} is not a label map of one image ({summarize_error(error)}).") from error


def _number_of_source_frames(segmentation: Dataset) -> int:
    """Return the highest number of a frame that the segmentation refers to; 1 for images without frames."""
    highest = 1
    for group in segmentation.get("PerFrameFunctionalGroupsSequence", []):
        for derivation in group.get("DerivationImageSequence", []):
            for source in derivation.get("SourceImageSequence", []):
                numbers: Any = source.get("ReferencedFrameNumber") or 1
                highest = max(highest, *np.atleast_1d(numbers).astype(int).tolist())
    return highest


def _segmentation(labels: np.ndarray, header: Dataset, names: Mapping[int, str]) -> Dataset:
    highdicom = _import_highdicom()
    from pydicom.sr.codedict import codes

    if len(labels) > 1 and "PerFrameFunctionalGroupsSequence" not in header:
        raise ValueError("it is a video without the positions of its frames")
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
    complete = _with_type_2_attributes(header)
    if "SliceThickness" not in complete:  # of a projection: a SEG would need a thickness to state where its pixels lie
        for name in GEOMETRY:
            if name in complete:
                delattr(complete, name)
    made = highdicom.seg.Segmentation(
        source_images=[complete],
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
    for name in SPACINGS:  # nnU-Net requires labels with the spacing of their image
        if name in header:
            setattr(made, name, header.get(name))
    return made


def _with_type_2_attributes(header: Dataset) -> Dataset:
    """Return the header with the attributes of patient and study that may be empty but must be there."""
    pydicom = import_pydicom()
    complete = pydicom.Dataset({element.tag: element for element in header if element.keyword != "PixelData"})
    complete.file_meta = header.file_meta
    for name in (
        "PatientID PatientName PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime "
        "ReferringPhysicianName"
    ).split():
        if name not in complete:
            setattr(complete, name, "")
    return complete


def _secondary_capture(labels: np.ndarray, header: Dataset) -> Dataset:
    pydicom = import_pydicom()
    bits = 8 if labels.max(initial=0) < 256 else 16
    made = pydicom.Dataset()
    study = (
        "PatientID PatientName PatientBirthDate PatientSex StudyInstanceUID StudyID StudyDate StudyTime "
        "AccessionNumber ReferringPhysicianName PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing"
    )
    complete = _with_type_2_attributes(header)
    for name in study.split():
        if name in complete:
            setattr(made, name, complete.get(name))
    made.SOPClassUID, made.SOPInstanceUID = SECONDARY_CAPTURE[bits], pydicom.uid.generate_uid()
    made.SeriesInstanceUID, made.SeriesNumber, made.InstanceNumber = pydicom.uid.generate_uid(), SERIES_NUMBER, 1
    made.Modality, made.ConversionType, made.SeriesDescription = "OT", "WSD", NAME
    made.Manufacturer, made.SoftwareVersions, made.BurnedInAnnotation = NAME, __version__, "NO"
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.BitsAllocated, made.BitsStored, made.HighBit = bits, bits, bits - 1
    made.NumberOfFrames, made.Rows, made.Columns = labels.shape
    made.RescaleSlope, made.RescaleIntercept, made.RescaleType = 1, 0, "US"
    made.PresentationLUTShape = "IDENTITY"
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


def _import_highdicom() -> Any:
    import_extra("highdicom.seg", "dicom", "writing DICOM SEG")
    return import_extra("highdicom", "dicom", "writing DICOM SEG")
