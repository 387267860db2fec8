"""Segment an image, or a folder of images, from boxes and points."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from nnunet_hrmedseg.errors import DataError, PlanError, format_names
from nnunet_hrmedseg.io.file_names import describe_alike
from nnunet_hrmedseg.io.files import escape_formula, reporting_write_errors, write_atomically
from nnunet_hrmedseg.io.processes import processes
from nnunet_hrmedseg.io.raw_cases import check_training_names
from nnunet_hrmedseg.io.stored_images import describe_read_error
from nnunet_hrmedseg.prompting.jobs import Job, describe_skipped_files, find_jobs, place_prompts, read_image
from nnunet_hrmedseg.prompting.label_maps import Objects, class_values, find_objects
from nnunet_hrmedseg.prompting.labelling import NewDataset
from nnunet_hrmedseg.prompting.mask_files import SCORES, MaskFiles, check_unique
from nnunet_hrmedseg.prompting.networks import load_promptable
from nnunet_hrmedseg.prompting.options import PromptingOptions
from nnunet_hrmedseg.prompting.overlay import draw_overlay
from nnunet_hrmedseg.prompting.predictor import Predictor
from nnunet_hrmedseg.prompting.prompts import Box, Point

__all__ = ["SegmentedObject", "Segmentation", "segment"]


@dataclass(frozen=True)
class SegmentedObject:
    """One object that was found.

    Attributes:
        image: Path of its image below the folder.
        number: Number of the object in its image, from 1 in the order of the prompts.
        category: Its class.
        score: IoU that the decoder predicts.
        pixels: Size of its mask, before other objects were drawn over it.
    """

    image: str
    number: int
    category: str
    score: float
    pixels: int


@dataclass(frozen=True)
class Segmentation:
    """What `segment` wrote.

    Attributes:
        folder: Folder of the masks, or of the dataset.
        masks: Number of masks.
        objects: All objects, in the order of images and prompts.
        classes: Class -> value in the masks.
        instances: Whether the masks contain numbers of objects instead of classes.
        failures: Images that could not be segmented, with the reason.
        scores: scores.csv; None for a single image.
        dataset: Name of the dataset; None if masks were written instead.
        boxes: Boxes of all prompts in pixels.
    """

    folder: Path
    masks: int
    objects: list[SegmentedObject]
    classes: dict[str, int]
    instances: bool = False
    failures: list[str] = field(default_factory=list)
    scores: Path | None = None
    dataset: str | None = None
    boxes: list[Box] = field(default_factory=list)

    def describe(self) -> str:
        """Return what was written, in lines."""
        values = [f"{value} {name}" for name, value in self.classes.items()]
        values = ["numbers of objects"] if self.instances else values
        meaning = ", ".join(["0 background", *values])
        lines = [f"{self.masks} mask{'s' * (self.masks != 1)} in {self.folder}: {meaning}."]
        lines += _describe_box_sizes(self.boxes)
        if self.scores is None:
            lines.append("Predicted IoU: " + ", ".join(f"{found.score:.3f}" for found in self.objects))
        if self.dataset is not None:
            lines += [
                f"Look at {self.folder / 'overlays'}, correct labels in {self.folder / 'labelsTr'}, then:",
                f"nnUNetv2_plan_and_preprocess -d {int(self.dataset[7:10])} -c 2d --verify_dataset_integrity",
            ]
        return "\n".join(lines)

    def describe_failures(self) -> str:
        """Return how many images could not be segmented, and why."""
        total = self.masks + len(self.failures)
        return f"{len(self.failures)} of {total} images could not be segmented: {format_names(self.failures)}"


def segment(
    *,
    image: str | os.PathLike,
    encoder: str | os.PathLike | None,
    sam: str | os.PathLike | None,
    boxes: Sequence[Box] = (),
    points: Sequence[Point] = (),
    prompts: str | os.PathLike | None = None,
    normalized: bool = False,
    output: str | os.PathLike = "hrmedseg_masks",
    dataset: str | None = None,
    instances: bool = False,
    overlays: bool = True,
    overwrite: bool = False,
    options: PromptingOptions | None = None,
) -> Segmentation:
    """Write a mask for every image, from boxes and points, with a distilled encoder and the decoder of SAM.

    All prompts and files are checked before anything is written. To work with arrays instead of files, use `Predictor`.

    Args:
        image: An image, or a folder of images.
        encoder: Encoder file that was distilled from the SAM.
        sam: The SAM: Meta's or MobileSAM's .pth, or a folder in the format of transformers.
        boxes: Boxes in a single image: x0, y0, x1, y1 in pixels, the edges of the rectangle; an object each.
        points: Points of one object in a single image: x, y in pixels, and 1 in the object or 0 beside it.
        prompts: CSV or JSON file of prompts, instead of `boxes` and `points`; required for a folder.
        normalized: Coordinates are fractions of the image's width and height instead of pixels.
        output: Folder for masks and overlays.
        dataset: Write an nnU-Net raw dataset of this name (Dataset123_Name) into nnUNet_raw instead.
        instances: Masks contain numbers of objects instead of classes.
        overlays: Write a picture of the masks on each image, too.
        overwrite: Replace masks that are there already.
        options: Device, number of masks for a prompt, memory.

    Returns:
        What was written, with the score of every object. `failures` names images that turned out to be unreadable.

    Raises:
        CheckpointError: Encoder or SAM are missing, damaged, or do not belong together.
        DataError: Images or prompts that cannot be used, or not one image could be segmented.
        PlanError: Options that cannot be combined, or a name that a dataset cannot have.
        SetupError: Output files exist already or cannot be written, or the device or a package is missing.

    Examples:
        ```python
        import numpy as np
        from PIL import Image

        from nnunet_hrmedseg import PromptingOptions, segment

        Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)).save("cell.png")
        result = segment(
            image="cell.png",
            encoder="encoder.safetensors",  # as distill(..., recipe=DistillationOptions(promptable=True)) writes it
            sam="sam.pth",
            boxes=[(10, 5, 80, 60)],
            options=PromptingOptions(device="cpu"),
        )
        mask = np.asarray(Image.open(result.folder / "cell_mask.png"))
        assert mask.shape == (70, 90) and len(result.objects) == 1
        ```
    """
    options = options or PromptingOptions()
    image, prompts = Path(image), None if prompts is None else Path(prompts)
    jobs = find_jobs(image, boxes, points, prompts)
    several = dataset is not None or image.is_dir()
    files = MaskFiles(Path(output), instances, overlays, scores=several)
    if dataset is None:
        files.check(jobs, overwrite=overwrite)
    for sentence in describe_skipped_files(jobs, image, prompts):
        print(sentence)
    alike = describe_alike([job.name for job in jobs])
    if alike:
        print(f"Note: {alike}.")
    classes = class_values(prompt for job in jobs for prompt in job.prompts)
    jobs, gray = place_prompts(jobs, normalized)
    new_dataset = None
    if dataset is not None:
        _check_dataset(jobs, classes, instances, prompts)
        new_dataset = NewDataset(dataset, classes, gray=gray)
    with processes(options.device) as group:
        predictor = Predictor(load_promptable(encoder, sam), group.device, options.prompts_at_once)
        with nullcontext() if new_dataset is None else new_dataset.writing():
            write = _writer(files, new_dataset)
            objects, failures = _run(jobs, predictor, classes, options.multimask or None, write)
            result = Segmentation(
                folder=files.folder if new_dataset is None else new_dataset.folder,
                masks=len(jobs) - len(failures),
                objects=objects,
                classes=classes,
                instances=instances,
                failures=failures,
                dataset=dataset,
                boxes=[prompt.box for job in jobs for prompt in job.prompts if prompt.box],
            )
            if not result.masks:
                raise DataError(result.describe_failures())
    return _with_scores_file(result) if several else result


def _check_dataset(jobs: Sequence[Job], classes: dict[str, int], instances: bool, prompts: Path | None) -> None:
    if instances:
        raise PlanError("--instances does not go with --dataset: nnU-Net learns classes.")
    if not classes:
        raise DataError(f"{prompts} has no object in any image: there is nothing to learn.")
    check_unique([job.case for job in jobs])
    check_training_names(((job.case, job.file) for job in jobs), "Rename these images, and their names in the prompts.")


def _writer(files: MaskFiles, dataset: NewDataset | None) -> Callable[[Job, Image.Image, Objects], None]:
    """Return the function that writes the mask and the overlay of an image."""
    if dataset is not None:
        files = MaskFiles(dataset.incomplete / "overlays", files.instances, files.overlays, files.scores)

    def write(job: Job, image: Image.Image, objects: Objects) -> None:
        if dataset is not None:
            with reporting_write_errors(dataset.folder, "and repeat the command."):
                dataset.add(job.case, job.file, image, objects.label_map())
        else:
            files.write(files.mask(job), Image.fromarray(objects.label_map(files.instances)))
        if files.overlays:
            files.write(files.overlay(job), draw_overlay(image, objects.numbers, objects.values, job.prompts))

    return write


def _run(
    jobs: Sequence[Job],
    predictor: Predictor,
    classes: dict[str, int],
    multimask: bool | None,
    write: Callable[[Job, Image.Image, Objects], None],
) -> tuple[list[SegmentedObject], list[str]]:
    """Segment the images one after the other. Returns all objects, and sentences on images that are broken."""
    found: list[SegmentedObject] = []
    failures = []
    for job in tqdm(jobs, "Segmenting", unit="image", disable=len(jobs) < 2):
        try:
            image = read_image(job.file)
            for prompt in job.prompts:
                prompt.placed((image.height, image.width))
        except Exception as error:  # readers raise errors of many types
            failures.append(f"{job.file.name}: {describe_read_error(error)}")
            continue
        objects = find_objects(predictor, image, job.prompts, classes, multimask)
        write(job, image, objects)
        rows = zip(job.prompts, objects.scores, objects.areas, strict=True)
        for number, (prompt, score, area) in enumerate(rows, start=1):
            found.append(SegmentedObject(job.name + job.file.suffix, number, prompt.category, score, area))
    return found, failures


def _with_scores_file(result: Segmentation) -> Segmentation:
    file = result.folder / SCORES
    with reporting_write_errors(file):
        write_atomically(file, scores_csv(result.objects).encode("utf-8", "backslashreplace"))
    return replace(result, scores=file)


def scores_csv(objects: Sequence[SegmentedObject]) -> str:
    """Return the content of scores.csv; text that a spreadsheet would take for a formula is escaped."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["image", "object", "class", "score", "pixels"])
    for found in objects:
        names = escape_formula(found.image), found.number, escape_formula(found.category)
        rows.writerow([*names, f"{found.score:.3f}", found.pixels])
    return text.getvalue()


def _describe_box_sizes(boxes: Sequence[Box]) -> list[str]:
    """Return a line by which boxes that were given as x, y, width and height can be recognized."""
    if not boxes:
        return []
    sides = [[max(1, round(box[axis + 2] - box[axis])) for box in boxes] for axis in (0, 1)]
    widths, heights = (" to ".join(map(str, sorted({min(lengths), max(lengths)}))) for lengths in sides)
    return [f"Boxes (x0,y0,x1,y1): {widths} pixels wide, {heights} high."]
