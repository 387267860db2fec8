"""Label maps as DICOM Segmentation objects (SEG): written as predictions are, and read as labels of a training."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hrmedseg_onnx.dicom_seg import class_names, import_highdicom, write_label_map
from nnunet_hrmedseg.errors import DataError, summarize_error
from nnunet_hrmedseg.io.dicom import read_dicom, read_header

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["SEGMENTATION", "class_names", "number_of_source_frames", "read_label_map", "write_label_map"]

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
"""The SOP class of DICOM SEG."""


def read_label_map(file: Path) -> np.ndarray:
    """Read a label map, (frames, H, W): from a SEG with the frames of one image, or from a gray DICOM image.

    Raises:
        DataError: it cannot be read, or its segments overlap or have no order.
        SetupError: pydicom or highdicom is not installed.
    """
    header = read_header(file)
    if header.get("SOPClassUID") != SEGMENTATION:
        pixels = read_dicom(file).pixels
        if pixels.ndim != 3:
            raise DataError(f"{file} is a color image; labels are a DICOM SEG or a gray image of class values.")
        return pixels
    highdicom = import_highdicom()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            segmentation = highdicom.seg.segread(file)
            sources = segmentation.get_source_image_uids()
            if len(sources) != 1:
                raise ValueError(f"it refers to {len(sources)} images, not to one")
            (uid,) = (source[2] for source in sources)
            options: dict[str, Any] = {"combine_segments": True, "assert_missing_frames_are_empty": True}
            frames = number_of_source_frames(segmentation)
            if frames > 1:
                numbers = list(range(1, frames + 1))
                return segmentation.get_pixels_by_source_frame(uid, numbers, ignore_spatial_locations=True, **options)
            return segmentation.get_pixels_by_source_instance([uid], ignore_spatial_locations=True, **options)
    except Exception as error:  # of any file
        raise DataError(f"{file} is not a label map of one image ({summarize_error(error)}).") from error


def number_of_source_frames(segmentation: Dataset) -> int:
    """Return the highest number of a frame that the segmentation refers to; 1 for images without frames."""
    highest = 1
    for group in segmentation.get("PerFrameFunctionalGroupsSequence", []):
        for derivation in group.get("DerivationImageSequence", []):
            for source in derivation.get("SourceImageSequence", []):
                numbers: Any = source.get("ReferencedFrameNumber") or 1
                highest = max(highest, *np.atleast_1d(numbers).astype(int).tolist())
    return highest
