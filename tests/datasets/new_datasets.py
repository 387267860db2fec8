"""Small images and masks, and datasets made of them."""

import numpy as np
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

from nnunet_hrmedseg.datasets.make import make_dataset

SHAPE = 24, 32


def picture(channels: int = 3, seed: int = 0, dtype=np.uint8) -> np.ndarray:
    shape = SHAPE if channels == 1 else (*SHAPE, channels)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def square(value: int = 255, dtype=np.uint8) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype)
    mask[4:12, 6:20] = value
    return mask


def make(folders, **options):
    options = {"number": 7, "name": "Test", "show": lambda line: None, **options}
    return make_dataset(folders / "images", folders / "masks", raw=folders / "raw", **options)


def read_case(summary, case: str = "a") -> tuple[np.ndarray, np.ndarray]:
    """Read a case by nnU-Net's reader: image (C, H, W) and label map (H, W)."""
    images = [str(summary.folder / "imagesTr" / f"{case}_0000{summary.file_ending}")]
    label = str(summary.folder / "labelsTr" / f"{case}{summary.file_ending}")
    reader = NaturalImage2DIO()
    return reader.read_images(images)[0][:, 0], reader.read_seg(label)[0][0, 0]
