"""What the tests of the commands share: tiny networks in the real formats."""

import pytest

from tests.prompting.tiny_sams import write_sam2, write_sam_pth, write_student


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A folder with a SAM and a SAM2, and an encoder for each."""
    folder = tmp_path_factory.mktemp("networks")
    write_sam_pth(folder / "sam.pth")
    write_student(folder / "student.safetensors")
    write_sam2(folder / "sam2")
    write_student(folder / "student2.safetensors", "sam2")
    return folder
