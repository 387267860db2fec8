"""DICOM files for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES = Path(__file__).parents[2] / "nnunet_hrmedseg" / "demo" / "data" / "held_out" / "images"
CLASSES = {
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "MG": "1.2.840.10008.5.1.4.1.1.1.2",
    "US": "1.2.840.10008.5.1.4.1.1.6.1",
    "US video": "1.2.840.10008.5.1.4.1.1.3.1",
    "XA": "1.2.840.10008.5.1.4.1.1.12.1",
    "XC": "1.2.840.10008.5.1.4.1.1.77.1.4",
    "Enhanced CT": "1.2.840.10008.5.1.4.1.1.2.1",
    "Tomosynthesis": "1.2.840.10008.5.1.4.1.1.13.1.3",
}
"""Kind -> SOP class; the first two letters are the modality, except for enhanced images."""
MODALITIES = {"Enhanced CT": "CT", "Tomosynthesis": "MG"}


def real_image(size: tuple[int, int] | None = None) -> np.ndarray:
    """Return a microscopy image of the demo, (H, W, 3) uint8."""
    with Image.open(sorted(IMAGES.iterdir())[0]) as image:
        return np.asarray(image.convert("RGB").resize(size[::-1]) if size else image.convert("RGB"))


def radiograph(file: Path, pixels: np.ndarray, **attributes) -> Path:
    """Save gray pixels as a DX image."""
    return save_dicom(file, pixels, "DX", ImagerPixelSpacing=[0.2, 0.1], **attributes)


def save_dicom(file: Path, pixels: np.ndarray, kind: str, **attributes) -> Path:
    """Save pixels, ([frames,] H, W) or ([frames,] H, W, 3), uncompressed."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    image = pydicom.Dataset()
    image.SOPClassUID, image.SOPInstanceUID = CLASSES[kind], generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID = generate_uid(), generate_uid()
    image.PatientID, image.PatientName, image.Modality = "P1", "Doe^Jane", MODALITIES.get(kind, kind[:2])
    colored = pixels.shape[-1] == 3
    image.SamplesPerPixel, image.PixelRepresentation = 3 if colored else 1, 0
    image.PhotometricInterpretation = "RGB" if colored else "MONOCHROME2"
    if colored:
        image.PlanarConfiguration = 0
    bits = 8 * pixels.dtype.itemsize
    image.BitsAllocated, image.BitsStored, image.HighBit = bits, bits, bits - 1
    *frames, image.Rows, image.Columns = pixels.shape[:-1] if colored else pixels.shape
    if frames:
        (image.NumberOfFrames,) = frames
    for name, value in attributes.items():
        setattr(image, name, value)
    image.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.save_as(file, enforce_file_format=True)
    return file


def save_enhanced(
    file: Path,
    pixels: np.ndarray,
    kind: str,
    rescaling: Sequence[tuple[float, float]] = ((1, 0),),
    positions: Sequence[float] = (),
) -> Path:
    """Save (frames, H, W) as an enhanced image with a position of each frame.

    Args:
        file: file to write.
        pixels: gray values.
        kind: a key of CLASSES.
        rescaling: slope and intercept of each frame, or one pair shared by all frames.
        positions: positions of the frames in mm (default: 0, 1, ...).
    """
    import pydicom

    def dataset(**attributes) -> pydicom.Dataset:
        made = pydicom.Dataset()
        for name, value in attributes.items():
            setattr(made, name, value)
        return made

    def groups(**content) -> pydicom.Dataset:
        """Return functional groups: name of a sequence -> attributes of its item."""
        item = pydicom.Dataset()
        for name, attributes in content.items():
            setattr(item, name, [dataset(**attributes)])
        return item

    transformations = [dataset(RescaleSlope=s, RescaleIntercept=i, RescaleType="US") for s, i in rescaling]
    shared = groups(
        PixelMeasuresSequence={"PixelSpacing": [0.2, 0.1], "SliceThickness": 1},
        PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
    )
    frames = [
        groups(PlanePositionSequence={"ImagePositionPatient": [0, 0, z]}) for z in positions or range(len(pixels))
    ]
    for item, transformation in zip([shared] if len(rescaling) == 1 else frames, transformations, strict=True):
        item.PixelValueTransformationSequence = [transformation]
    return save_dicom(
        file,
        pixels,
        kind,
        FrameOfReferenceUID="1.2.3",
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=frames,
    )
