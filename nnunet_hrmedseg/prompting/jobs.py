"""Images and their prompts, checked before anything is computed or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from nnunet_hrmedseg.errors import DataError, format_names
from nnunet_hrmedseg.io.image_formats import ORIENTATION, decode, open_image
from nnunet_hrmedseg.io.skipped import describe_skipped, find_unused
from nnunet_hrmedseg.io.stored_images import describe_read_error
from nnunet_hrmedseg.prompting.image_names import check_suffix, named_images, prompts_of_image
from nnunet_hrmedseg.prompting.prompt_files import read_prompts
from nnunet_hrmedseg.prompting.prompts import Box, Point, Prompt

__all__ = ["Job", "describe_skipped_files", "find_jobs", "place_prompts", "read_image"]


@dataclass(frozen=True)
class Job:
    """An image and its prompts.

    Attributes:
        file: The image.
        name: Its path below the folder, without suffix; output files are named after it.
        prompts: One for each object.
    """

    file: Path
    name: str
    prompts: list[Prompt]

    @property
    def case(self) -> str:
        """Name of the case in a dataset."""
        return self.name.replace("/", "_")


def find_jobs(image: Path, boxes: Sequence[Box], points: Sequence[Point], prompts: Path | None) -> list[Job]:
    """Return the images and their prompts.

    Args:
        image: An image, or a folder of images.
        boxes: Boxes in a single image.
        points: Points in a single image, all of one object.
        prompts: File of prompts; required for a folder.

    Raises:
        DataError: The image or its prompts are missing, or the combination is ambiguous.
    """
    if not image.exists():
        raise DataError(f"There is no image {image}.")
    if (boxes or points) and (prompts or image.is_dir()):
        raise DataError(
            "--box and --point are for one image. For several, write a file with the columns image,x0,y0,x1,y1 and "
            "give it as --prompts."
        )
    if not image.is_dir():
        check_suffix(image)
        if prompts:
            return [Job(image, image.stem, prompts_of_image(image, read_prompts(prompts), str(prompts)))]
        return [Job(image, image.stem, _prompts_of_options(boxes, points))]
    if not prompts:
        raise DataError(
            f"{image} is a folder: give --prompts a CSV file with the columns image,x0,y0,x1,y1 (and class, points)."
        )
    given = read_prompts(prompts)
    return [
        Job(image / path, path.with_suffix("").as_posix(), given[name])
        for name, path in named_images(image, given, str(prompts)).items()
    ]


def _prompts_of_options(boxes: Sequence[Box], points: Sequence[Point]) -> list[Prompt]:
    if not boxes and not points:
        raise DataError("What is to be segmented? Give --box x0,y0,x1,y1 or --point x,y,1, or --prompts FILE.")
    if len(boxes) > 1 and points:
        raise DataError("With several boxes it is not clear to which one the points belong: use --prompts FILE.")
    return [Prompt(box, tuple(points)) for box in boxes] or [Prompt(None, tuple(points))]


def describe_skipped_files(jobs: Sequence[Job], image: Path, prompts: Path | None) -> list[str]:
    """Return sentences that name the files in a folder of images that have no prompts."""
    if not image.is_dir():
        return []
    folders = {image, *(parent for job in jobs for parent in job.file.parents if parent.is_relative_to(image))}
    used = [*([prompts] if prompts else []), *(job.file for job in jobs), *folders]
    return [sentence for folder in sorted(folders) for sentence in describe_skipped(folder, find_unused(folder, used))]


def place_prompts(jobs: Sequence[Job], normalized: bool) -> tuple[list[Job], bool]:
    """Convert all prompts to pixels, and check that they are inside their images.

    Returns:
        The jobs, and whether all images are gray.

    Raises:
        DataError: Images that cannot be opened, or prompts that are not inside their images.
    """
    placed, faults, all_gray = [], [], True
    for job in jobs:
        try:
            size, gray = _size_and_gray(job.file)
            all_gray &= gray
            placed.append(replace(job, prompts=[prompt.placed(size, normalized=normalized) for prompt in job.prompts]))
        except Exception as error:  # readers raise errors of many types
            faults.append(f"{job.file.name}: {describe_read_error(error)}")
    if faults:
        raise DataError(f"{len(faults)} of {len(jobs)} images or their prompts cannot be used: {format_names(faults)}")
    return placed, all_gray


def _size_and_gray(file: Path) -> tuple[tuple[int, int], bool]:
    """Return (height, width) and whether the image is gray, from its header if Pillow knows the format."""
    try:
        with open_image(str(file)) as opened:
            # Pillow would decode the whole of a PNG for its orientation, which hardly any camera writes
            turned = opened.format != "PNG" and opened.getexif().get(ORIENTATION, 1) >= 5  # by 90 degrees
            width, height = opened.size[::-1] if turned else opened.size
            return (height, width), opened.mode in ("L", "I", "F") or opened.mode.startswith("I;16")
    except UnidentifiedImageError:
        image = read_image(file)
        return (image.height, image.width), image.mode == "L"


def read_image(file: Path) -> Image.Image:
    """Read an image as mode L or RGB with 8 bits, as the whole package reads images."""
    return decode(str(file))
