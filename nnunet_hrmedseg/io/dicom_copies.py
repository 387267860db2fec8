"""Label maps of images whose files are absent: made from another label map of the image, or without an image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hrmedseg_onnx.dicom import import_pydicom, reading
from hrmedseg_onnx.dicom_seg import save_dicom, secondary_capture, write_label_map_of_header
from nnunet_hrmedseg.io.dicom import read_header
from nnunet_hrmedseg.io.dicom_seg import SEGMENTATION, number_of_source_frames

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["segment_names", "write_label_map_like", "write_label_map_without_image"]

OF_SEGMENTATION = (
    "PixelData NumberOfFrames SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence "
    "DimensionOrganizationType Manufacturer ManufacturerModelName DeviceSerialNumber SoftwareVersions"
).split()
"""Attributes of a SEG that its image has with other values."""
ACQUISITION_EQUIPMENT = "109101"
"""Code of the equipment that made the image, among the equipment that contributed to a SEG."""


def segment_names(file: Path) -> dict[int, str]:
    """Return number -> name of the segments of a SEG; empty for other label maps.

    Raises:
        DataError: the file cannot be read.
    """
    header = read_header(file)
    with reading(file):
        numbered = {int(segment.SegmentNumber): segment for segment in header.get("SegmentSequence", [])}
        return {number: str(segment.get("SegmentLabel") or number) for number, segment in numbered.items()}


def write_label_map_like(labels: np.ndarray, file: Path, read: Path, names: Mapping[int, str] | None = None) -> None:
    """Write a label map with patient, study and references of another label map of the same image, and of its kind.

    Args:
        labels: (frames, H, W) integers; 0 is background.
        file: DICOM file to write.
        read: the other label map: a SEG or a gray DICOM image, as `read_label_map` reads it.
        names: label value -> name of the class in a SEG [default: the value].

    Raises:
        DataError: the other label map cannot be read, or has another shape.
        SetupError: highdicom is not installed.
    """
    header = read_header(read)
    if header.get("SOPClassUID") == SEGMENTATION:
        with reading(read):
            image = _image_of(header)
        write_label_map_of_header(labels, file, image, read, names)
        return
    with reading(read):
        references = header.get("SourceImageSequence")
        if "SOPInstanceUID" in header:
            del header.SOPInstanceUID  # the label map refers to the image, not to the other label map
        made = secondary_capture(labels, header)
        if references:
            made.SourceImageSequence = references
    save_dicom(made, file)


def write_label_map_without_image(labels: np.ndarray, file: Path, spacing: tuple[float, float] | None = None) -> None:
    """Write a label map as a secondary capture of an unknown patient, in a study of its own.

    Args:
        labels: (frames, H, W) integers.
        file: DICOM file to write.
        spacing: height and width of a pixel in mm, if known.

    Raises:
        SetupError: pydicom is not installed.
    """
    pydicom = import_pydicom()
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.StudyInstanceUID = pydicom.uid.generate_uid()
    if spacing is not None:
        header.PixelSpacing = list(spacing)
    save_dicom(secondary_capture(labels, header), file)


def _image_of(segmentation: Dataset) -> Dataset:
    """Return the header of the image of a SEG: what the SEG copied from it, and what it states of its frames."""
    pydicom = import_pydicom()
    image = pydicom.Dataset({item.tag: item for item in segmentation if item.keyword not in OF_SEGMENTATION})
    image.file_meta = segmentation.file_meta
    (series,) = segmentation.ReferencedSeriesSequence
    (instance,) = series.ReferencedInstanceSequence
    image.SeriesInstanceUID = series.SeriesInstanceUID
    image.SOPClassUID = instance.ReferencedSOPClassUID
    image.SOPInstanceUID = instance.ReferencedSOPInstanceUID
    label = str(segmentation.get("ContentLabel", ""))
    image.Modality = label.removesuffix("_SEG") if label.endswith("_SEG") else "OT"
    for equipment in segmentation.get("ContributingEquipmentSequence", []):
        if _code(equipment) == ACQUISITION_EQUIPMENT:
            image.update({item.tag: item for item in equipment if item.keyword != "PurposeOfReferenceCodeSequence"})
    (shared, *_) = segmentation.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
    frames = _frames(segmentation)
    if frames:
        image.NumberOfFrames = number_of_source_frames(segmentation)
        _set_positions_of_frames(image, shared, frames)
    else:
        _set_position(image, [shared, *segmentation.get("PerFrameFunctionalGroupsSequence", [])])
    return image


def _code(equipment: Dataset) -> str:
    return next((str(code.get("CodeValue")) for code in equipment.get("PurposeOfReferenceCodeSequence", [])), "")


def _frames(segmentation: Dataset) -> dict[int, Dataset]:
    """Return number of a frame of the image -> functional groups of the SEG; empty for an image without frames."""
    found: dict[int, Dataset] = {}
    for groups in segmentation.get("PerFrameFunctionalGroupsSequence", []):
        for derivation in groups.get("DerivationImageSequence", []):
            for source in derivation.get("SourceImageSequence", []):
                numbers: Any = source.get("ReferencedFrameNumber")
                if numbers:
                    found.update(dict.fromkeys(np.atleast_1d(numbers).astype(int).tolist(), groups))
    return found


def _set_positions_of_frames(image: Dataset, shared: Dataset, frames: Mapping[int, Dataset]) -> None:
    """Give the header of a multi-frame image the functional groups of its frames, if all of them have a position."""
    pydicom = import_pydicom()
    numbers = range(1, int(image.NumberOfFrames) + 1)
    if not all(number in frames and "PlanePositionSequence" in frames[number] for number in numbers):
        return
    of_image, of_frames = pydicom.Dataset(), []
    for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        if name in shared:
            setattr(of_image, name, shared.get(name))
    for number in numbers:
        of_frame = pydicom.Dataset()
        of_frame.PlanePositionSequence = frames[number].PlanePositionSequence
        of_frames.append(of_frame)
    image.SharedFunctionalGroupsSequence, image.PerFrameFunctionalGroupsSequence = [of_image], of_frames


def _set_position(image: Dataset, groups: list[Dataset]) -> None:
    """Give the header of a single-frame image its position in the patient, where the SEG has it."""
    for sequence, names in (
        ("PlanePositionSequence", ["ImagePositionPatient"]),
        ("PlaneOrientationSequence", ["ImageOrientationPatient"]),
        ("PixelMeasuresSequence", ["PixelSpacing", "SliceThickness", "SpacingBetweenSlices"]),
    ):
        (values, *_) = [item for group in groups for item in group.get(sequence, [])] or [{}]
        for name in names:
            if name in values:
                setattr(image, name, values.get(name))
