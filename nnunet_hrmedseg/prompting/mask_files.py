"""The files that `segment` writes: their names, checks before anything is computed, and writing."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from nnunet_hrmedseg.errors import DataError, SetupError, format_names
from nnunet_hrmedseg.io.files import check_output_dir, reporting_write_errors, write_atomically
from nnunet_hrmedseg.prompting.jobs import Job

__all__ = ["MaskFiles", "check_unique"]

SCORES = "scores.csv"
LOSSLESS = (".png", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class MaskFiles:
    """The output folder of `segment`.

    Attributes:
        folder: Output folder.
        instances: Whether masks contain numbers of objects instead of classes.
        overlays: Whether an overlay is written for each image.
        scores: Whether scores.csv is written. For single images it is not: each would replace that of the one before.
    """

    folder: Path
    instances: bool
    overlays: bool
    scores: bool

    def mask(self, job: Job) -> Path:
        """Return the path of a mask: in the format of the image, or PNG where that format would lose values."""
        suffix = job.file.suffix.lower()
        wide = self.instances and len(job.prompts) > 255
        lossless = suffix in LOSSLESS and not (wide and suffix == ".bmp")
        return self.folder / f"{job.name}_mask{suffix if lossless else '.png'}"

    def overlay(self, job: Job) -> Path:
        """Return the path of an overlay."""
        return self.folder / f"{job.name}_overlay.jpg"

    def check(self, jobs: Sequence[Job], *, overwrite: bool) -> None:
        """Check that all files can be written.

        Raises:
            DataError: Two images would have the same name, or an image would be overwritten.
            SetupError: The folder cannot be used, or files are there already and `overwrite` is not set.
        """
        check_unique([job.name for job in jobs])
        files = [self.mask(job) for job in jobs]
        files += [self.overlay(job) for job in jobs] if self.overlays else []
        files += [self.folder / SCORES] if self.scores else []
        for folder in sorted({file.parent for file in files}):
            check_output_dir(folder)
        in_the_way = [str(file) for file in files if file.is_dir()]
        if in_the_way:
            raise SetupError(
                f"{format_names(in_the_way)}: a file is to be written there, and it is a folder. Give -o another."
            )
        inputs = {job.file.resolve() for job in jobs}
        hit = [str(file) for file in files if file.resolve() in inputs]
        if hit:
            raise DataError(
                f"{format_names(hit)} would be overwritten, which are images to segment. Give -o another folder."
            )
        existing = [str(file) for file in files if file.exists()]
        if existing and not overwrite:
            raise SetupError(
                f"{format_names(existing)} exist already. Give -o another folder, or --overwrite to replace them."
            )

    @staticmethod
    def write(file: Path, image: Image.Image) -> None:
        """Write an image in the format of the file's suffix.

        Raises:
            SetupError: The file cannot be written.
        """
        content = io.BytesIO()
        formats = {".jpg": "JPEG", ".bmp": "BMP", ".png": "PNG"}
        image.save(content, formats.get(file.suffix, "TIFF"), **({"quality": 90} if file.suffix == ".jpg" else {}))
        with reporting_write_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, content.getvalue())


def check_unique(names: Sequence[str]) -> None:
    """Check that no two images have the same name.

    Raises:
        DataError: Some have.
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"Several images would have the same name: {format_names(twice)}. Rename one of them.")
