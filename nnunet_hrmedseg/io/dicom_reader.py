"""nnU-Net's reader and writer for DICOM: images of one file each, and their labels as DICOM SEG.

A dataset.json selects it by `"file_ending": ".dcm"` and `"overwrite_image_reader_writer": "HRMedSegDicomIO"`.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_hrmedseg.errors import DataError, HRMedSegError, format_shape
from nnunet_hrmedseg.io.dicom import pixel_spacing, read_dicom, read_header
from nnunet_hrmedseg.io.dicom_copies import segment_names, write_label_map_like, write_label_map_without_image
from nnunet_hrmedseg.io.dicom_seg import class_names, read_label_map, write_label_map
from nnunet_hrmedseg.io.files import read_json_object
from nnunet_hrmedseg.io.json_values import numeric_labels
from nnunet_hrmedseg.nnunet_versions import nnunet_folder

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
        """Read a label map, (1, frames, H, W), and nnU-Net's properties with its path."""
        labels = read_label_map(Path(seg_fname))
        spacing = pixel_spacing(read_header(Path(seg_fname)))
        properties = {"spacing": with_slice_spacing(spacing), "dicom_label_map": str(seg_fname)}
        return labels[None].astype(np.float32), properties

    def write_seg(self, seg: np.ndarray, output_fname: str, properties: dict[str, Any]) -> None:
        """Write a label map, (frames, H, W), with patient, study and references of its image.

        They come from the image if the properties are those of `read_images`. An image that was moved is searched in
        the present nnUNet_raw; without it, the label map is written as a secondary capture, with a warning. They come
        from the label map that was read if the properties are those of `read_seg`, as in nnU-Net's postprocessing.

        Names of the classes come from that label map, and from a dataset.json in its folder or that of the output.

        Raises:
            DataError: the properties come neither from `read_images` nor from `read_seg`, or their file is damaged.
        """
        labels, output = seg.astype(np.int64), Path(output_fname)
        names = names_beside(output.parent)
        source, read = properties.get("dicom_source"), properties.get("dicom_label_map")
        if source is not None:
            image = present_path(source)
            if image is not None:
                write_label_map(labels, output, image, names)
                return
            warnings.warn(
                f"The image {source} was not found, neither there nor in nnUNet_raw "
                f"({nnunet_folder('nnUNet_raw') or 'not set'}). {output} is written without patient, study and "
                f"references, as a secondary capture: a gray image with the class of each pixel as its value. To get a "
                f"DICOM SEG, set nnUNet_raw to the folder with the images and repeat the command.",
                stacklevel=2,
            )
            write_label_map_without_image(labels, output, without_slice_spacing(properties.get("spacing")))
        elif read is not None:
            known = names | names_beside(Path(read).parent)
            # a segment without a name has its number as name
            named = {n: known.get(n, name) if name == str(n) else name for n, name in segment_names(Path(read)).items()}
            write_label_map_like(labels, output, Path(read), known | named)
        else:
            raise DataError(
                f"{output} cannot be written: its properties name neither a DICOM image nor a label map. Use the "
                f"properties that read_images or read_seg of HRMedSegDicomIO returns."
            )


def present_path(source: str) -> Path | None:
    """Return where an image of the raw data is now: at its path, or in the present nnUNet_raw; None if it is gone.

    Args:
        source: path of the image when it was preprocessed, maybe on another machine.
    """
    if os.path.isfile(source):
        return Path(source)
    raw = nnunet_folder("nnUNet_raw")
    parts = re.split(r"[/\\]", source)
    datasets = [place for place, part in enumerate(parts[:-1]) if re.match(r"Dataset\d{3}_", part)]
    if raw is None or not datasets:
        return None
    moved = os.path.join(raw, *parts[datasets[-1] :])
    return Path(moved) if os.path.isfile(moved) else None


def with_slice_spacing(spacing: tuple[float, float] | None) -> tuple[float, float, float]:
    """Return the spacing of slices, rows and columns; the last two are 1 where an image has none."""
    rows, columns = spacing or NO_SPACING
    return max(SLICE_SPACING, 2 * rows, 2 * columns), rows, columns


def without_slice_spacing(spacing: Sequence[float] | None) -> tuple[float, float] | None:
    """Return the spacing of rows and columns; None where `with_slice_spacing` had none."""
    *_, rows, columns = spacing or NO_SPACING
    return None if (rows, columns) == NO_SPACING else (float(rows), float(columns))


def names_beside(folder: Path) -> dict[int, str]:
    """Return label value -> name by the dataset.json that nnU-Net writes beside predictions; empty without one."""
    try:
        return class_names(numeric_labels(read_json_object(folder / "dataset.json", "dataset")))
    except (HRMedSegError, KeyError, TypeError, AttributeError):
        return {}
