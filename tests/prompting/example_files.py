"""Files for the examples of encoders and prompting: public name -> function that writes them into a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.encoders.tiny_datasets import write_labeled
from tests.prompting.tiny_sams import write_sam2, write_sam_pth, write_student
from tests.teachers.tiny_teachers import write_sam
from tests.weights.published_layout import write_published


def write_promptable(folder: Path) -> None:
    """Write a SAM, and an encoder that was distilled from it."""
    write_sam_pth(folder / "sam.pth")
    write_student(folder / "encoder.safetensors")


def write_promptable_sam2(folder: Path) -> None:
    """Write a SAM2, and an encoder that was distilled from it."""
    write_sam2(folder / "sam2")
    write_student(folder / "encoder.safetensors", "sam2")


def write_promptable_and_dataset(folder: Path) -> None:
    """Write a SAM, an encoder that was distilled from it, and a labeled dataset."""
    write_promptable(folder)
    write_labeled(folder / "nnUNet_raw" / "Dataset001_Discs", 2)


FIXTURES: dict[str, Callable[[Path], object]] = {
    "HRMedSegSAM": write_promptable,
    "HRMedSegSAM2": write_promptable_sam2,
    "Predictor": write_promptable,
    "distill": lambda folder: write_sam(folder / "sam_tiny.pth"),
    "import_encoder": lambda folder: write_published(folder / "SAM_PFD_10K.pth"),
    "segment": write_promptable,
    "zeroshot": write_promptable_and_dataset,
}
