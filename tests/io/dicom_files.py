"""DICOM files for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

DIGITAL_XRAY = "1.2.840.10008.5.1.4.1.1.1.1"


def radiograph(file: Path, pixels: np.ndarray, **attributes) -> Path:
    """Save grey pixels as a DX image."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    image = pydicom.Dataset()
    image.SOPClassUID, image.SOPInstanceUID = DIGITAL_XRAY, generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID = generate_uid(), generate_uid()
    image.PatientID, image.PatientName, image.Modality = "P1", "Doe^Jane", "DX"
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    bits = 8 * pixels.dtype.itemsize
    image.BitsAllocated, image.BitsStored, image.HighBit = bits, bits, bits - 1
    image.Rows, image.Columns = pixels.shape
    image.ImagerPixelSpacing = [0.2, 0.1]
    for name, value in attributes.items():
        setattr(image, name, value)
    image.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID, image.file_meta.MediaStorageSOPInstanceUID = DIGITAL_XRAY, generate_uid()
    image.save_as(file, enforce_file_format=True)
    return file
