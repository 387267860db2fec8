"""nnU-Net's reader and writer for DICOM: images of one file each, and their labels as DICOM SEG.

A dataset.json selects it by `"file_ending": ".dcm"` and `"overwrite_image_reader_writer": "HRMedSegDicomIO"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_hrmedseg.errors import DataError, HRMedSegError, format_shape
from nnunet_hrmedseg.io.dicom import pixel_spacing, read_dicom, read_header
from nnunet_hrmedseg.io.dicom_seg import class_names, read_label_map, write_label_map
from nnunet_hrmedseg.io.files import read_json_object
from nnunet_hrmedseg.io.json_values import numeric_labels

__all__ = ["HRMedSegDicomIO"]

NO_SPACING = (1.0, 1.0)
SLICE_SPACING = 999.0  # nnU-Net's value for images without a third axis; it must exceed the others


class HRMedSegDicomIO(BaseReaderWriter):
    """Read single-frame and multi-frame DICOM; write label maps as DICOM SEG that refers to the image."""

    supported_file_endings = (".dcm",)

    def read_images(self, image_fnames: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
        """Read the channels of one case: gray files give one channel each, a color file three.

        Returns:
            (channels, frames, H, W) in float32, and nnU-Net's properties with the path of the first file.

        Raises:
            DataError: a file cannot be read, or the files differ in size.
        """
        channels: list[np.ndarray] = []
        spacings = []
        for file in image_fnames:
            image = read_dicom(Path(file))
            channels.extend(image.channels)
            spacings.append(image.spacing)
        shapes = {channel.shape for channel in channels}
        if len(shapes) > 1:
            raise DataError(
                f"The channels of a case differ in size: {', '.join(map(str, image_fnames))} have "
                f"{' and '.join(map(format_shape, sorted(shapes)))} pixels (frames x rows x columns)."
            )
        properties = {"spacing": with_slice_spacing(spacings[0]), "dicom_source": str(image_fnames[0])}
        return np.stack(channels).astype(np.float32), properties

    def read_seg(self, seg_fname: str) -> tuple[np.ndarray, dict[str, Any]]:
        """Read a label map, (1, frames, H, W)."""
        labels = read_label_map(Path(seg_fname))
        spacing = pixel_spacing(read_header(Path(seg_fname)))
        return labels[None].astype(np.float32), {"spacing": with_slice_spacing(spacing)}

    def write_seg(self, seg: np.ndarray, output_fname: str, properties: dict[str, Any]) -> None:
        """Write a label map, (frames, H, W), with the class names of a dataset.json in the folder of the output.

        Raises:
            DataError: the properties do not come from `read_images`, or the image is gone.
        """
        source = properties.get("dicom_source")
        if source is None:
            raise DataError(f"{output_fname} cannot be written: it is not known which DICOM image it belongs to.")
        names = names_beside(Path(output_fname).parent)
        write_label_map(seg.astype(np.int64), Path(output_fname), Path(source), names)


def with_slice_spacing(spacing: tuple[float, float] | None) -> tuple[float, float, float]:
    """Return the spacing of slices, rows and columns; the last two are 1 where an image has none."""
    rows, columns = spacing or NO_SPACING
    return max(SLICE_SPACING, 2 * rows, 2 * columns), rows, columns


def names_beside(folder: Path) -> dict[int, str]:
    """Return label value -> name by the dataset.json that nnU-Net writes beside predictions; empty without one."""
    try:
        return class_names(numeric_labels(read_json_object(folder / "dataset.json", "dataset")))
    except (HRMedSegError, KeyError, TypeError, AttributeError):
        return {}
