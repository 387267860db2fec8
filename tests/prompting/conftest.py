"""Fixtures for the tests of the commands: tiny networks in the real formats."""

import numpy as np
import pytest
from PIL import Image

from tests.prompting.tiny_sams import picture, write_sam2, write_sam_pth, write_student


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Write a SAM and a SAM2, and an encoder for each."""
    folder = tmp_path_factory.mktemp("networks")
    write_sam_pth(folder / "sam.pth")
    write_student(folder / "student.safetensors")
    write_sam2(folder / "sam2")
    write_student(folder / "student2.safetensors", "sam2")
    return folder


@pytest.fixture
def image(tmp_path):
    Image.fromarray(picture(70, 90)).save(tmp_path / "cell.png")
    return tmp_path / "cell.png"


@pytest.fixture
def folder(tmp_path):
    """Write two color images, one of them in a folder, a grayscale image and one with 16 bits."""
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    Image.fromarray(picture(70, 90)).save(images / "a.png")
    Image.fromarray(picture(40, 50)).save(images / "sub" / "b.jpg")
    Image.fromarray(picture(40, 50)[..., 0]).save(images / "c.tif")
    Image.fromarray(picture(40, 50)[..., 0].astype(np.uint16) * 100).save(images / "d.png")
    return images
