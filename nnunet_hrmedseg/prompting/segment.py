"""`hrmedseg segment`: masks of an image, or of a folder of images with a file of prompts."""

from __future__ import annotations

import argparse
import csv
import io
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from nnunet_hrmedseg.errors import HRMedSegError, format_names
from nnunet_hrmedseg.io.files import check_output_dir, escape_formula, reporting_write_errors, write_atomically
from nnunet_hrmedseg.io.image_formats import ORIENTATION, decode, open_image
from nnunet_hrmedseg.io.processes import processes
from nnunet_hrmedseg.io.skipped import describe_skipped, find_unused
from nnunet_hrmedseg.io.stored_images import describe_read_error
from nnunet_hrmedseg.prompting.image_names import check_suffix, named_images, prompts_of_image
from nnunet_hrmedseg.prompting.label_maps import Objects, class_values, find_objects
from nnunet_hrmedseg.prompting.labelling import NewDataset
from nnunet_hrmedseg.prompting.networks import load_promptable
from nnunet_hrmedseg.prompting.overlay import draw_overlay
from nnunet_hrmedseg.prompting.predictor import Predictor
from nnunet_hrmedseg.prompting.prompt_files import read_prompts
from nnunet_hrmedseg.prompting.prompts import Box, Prompt

__all__ = ["segment"]

SCORES = "scores.csv"
LOSSLESS = (".png", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Job:
    """An image and its prompts. `name` is its path below the folder, without suffix, and names what is written."""

    file: Path
    name: str
    prompts: list[Prompt]

    @property
    def case(self) -> str:
        """Name of the case in a data set."""
        return self.name.replace("/", "_")


def segment(args: argparse.Namespace) -> int:
    """Run the command with the arguments of `promptable.arguments.add_segment_arguments`.

    Everything that can be wrong with prompts and files is looked at before anything is written.

    Raises:
        HRMedSegError: whatever the user can mend.
    """
    jobs = _jobs(args)
    output = Path(args.output)
    if not args.dataset:
        _check_output(jobs, output, args)
    for sentence in _skipped(jobs, args):
        print(sentence)
    classes = class_values(prompt for job in jobs for prompt in job.prompts)
    jobs, grey = _placed(jobs, args.normalized)
    if args.dataset:
        if args.instances:
            raise HRMedSegError("--instances does not go with --dataset: nnU-Net learns classes.")
        if not classes:
            raise HRMedSegError(f"{args.prompts} has no object in any image: there is nothing to learn.")
        _check_unique([job.case for job in jobs])
        dataset = NewDataset(args.dataset, classes, grey=grey)
    with processes(args.device) as group, ExitStack() as stack:
        predictor = Predictor(load_promptable(args.encoder, args.sam), group.device, args.prompts_at_once)
        if args.dataset:
            stack.enter_context(dataset)
            output = dataset.incomplete / "overlays"

        def write(job: Job, image: Image.Image, objects: Objects) -> None:
            if args.dataset:
                with reporting_write_errors(dataset.folder, "and repeat the command."):
                    dataset.add(job.case, job.file, image, objects.label_map())
            else:
                _write_image(_mask_file(job, output, args), Image.fromarray(objects.label_map(args.instances)))
            if not args.no_overlay:
                drawn = draw_overlay(image, objects.numbers, objects.values, job.prompts)
                _write_image(_overlay_file(job, output), drawn)

        scores, faults = _run(jobs, predictor, classes, args.multimask or None, write)
    if len(faults) < len(jobs):
        folder = dataset.folder if args.dataset else output
        meaning = ["numbers of objects"] if args.instances else [f"{value} {name}" for name, value in classes.items()]
        count = len(jobs) - len(faults)
        print(f"{count} mask{'s' * (count != 1)} in {folder}: {', '.join(['0 background', *meaning])}.")
        print(_sizes_of_boxes([prompt.box for job in jobs for prompt in job.prompts if prompt.box]), end="")
        if _has_scores_file(args):
            with reporting_write_errors(folder / SCORES):
                write_atomically(folder / SCORES, _as_csv(scores).encode())
        else:
            print("Predicted IoU: " + ", ".join(score for *_, score, _ in scores))
        if args.dataset:
            print(f"Look at {folder / 'overlays'}, mend labels in {folder / 'labelsTr'}, then:")
            print(f"nnUNetv2_plan_and_preprocess -d {int(args.dataset[7:10])} -c 2d --verify_dataset_integrity")
    if faults:
        raise HRMedSegError(f"{len(faults)} of {len(jobs)} images could not be segmented: {format_names(faults)}")
    return 0


# ---- what is to be done ----------------------------------------------------------------------------------------------


def _jobs(args: argparse.Namespace) -> list[Job]:
    image = Path(args.image)
    if not image.exists():
        raise HRMedSegError(f"There is no image {image}.")
    if (args.box or args.point) and (args.prompts or image.is_dir()):
        raise HRMedSegError(
            "--box and --point are for one image. For several, write a file with the columns image,x0,y0,x1,y1 and "
            "give it as --prompts."
        )
    if not image.is_dir():
        check_suffix(image)
        if args.prompts:
            given = read_prompts(Path(args.prompts))
            return [Job(image, image.stem, prompts_of_image(image, given, args.prompts))]
        return [Job(image, image.stem, _prompts_of_options(args))]
    if not args.prompts:
        raise HRMedSegError(
            f"{image} is a folder: give --prompts a CSV file with the columns image,x0,y0,x1,y1 (and class, points)."
        )
    given = read_prompts(Path(args.prompts))
    return [
        Job(image / path, path.with_suffix("").as_posix(), given[name])
        for name, path in named_images(image, given, args.prompts).items()
    ]


def _skipped(jobs: list[Job], args: argparse.Namespace) -> list[str]:
    """Return sentences on what lies beside the images of a folder, and has no prompts."""
    top = Path(args.image)
    if not top.is_dir():
        return []
    folders = {top, *(place for job in jobs for place in job.file.parents if place.is_relative_to(top))}
    used = [args.prompts, *(job.file for job in jobs), *folders]
    sentences = (describe_skipped(folder, find_unused(folder, used)) for folder in sorted(folders))
    return [sentence for of_folder in sentences for sentence in of_folder]


def _prompts_of_options(args: argparse.Namespace) -> list[Prompt]:
    if not args.box and not args.point:
        raise HRMedSegError("What is to be segmented? Give --box x0,y0,x1,y1 or --point x,y,1, or --prompts FILE.")
    if len(args.box) > 1 and args.point:
        raise HRMedSegError("With several boxes it is not clear whose the points are: use --prompts FILE.")
    points = tuple(args.point)
    return [Prompt(box, points) for box in args.box] or [Prompt(None, points)]


def _placed(jobs: list[Job], normalized: bool) -> tuple[list[Job], bool]:
    """The jobs with all prompts in pixels and in their images; and whether all images are grey.

    Raises:
        HRMedSegError: images that cannot be opened, or prompts that do not lie in their images.
    """
    placed, faults, all_grey = [], [], True
    for job in jobs:
        try:
            size, grey = _size_and_grey(job.file)
            all_grey &= grey
            placed.append(replace(job, prompts=[prompt.placed(size, normalized=normalized) for prompt in job.prompts]))
        except Exception as error:  # readers raise what they like
            faults.append(f"{job.file.name}: {describe_read_error(error)}")
    if faults:
        raise HRMedSegError(
            f"{len(faults)} of {len(jobs)} images or their prompts cannot be used: {format_names(faults)}"
        )
    return placed, all_grey


def _size_and_grey(file: Path) -> tuple[tuple[int, int], bool]:
    """Height and width as the image is read, and whether it is grey; from its head where Pillow knows the format."""
    try:
        with open_image(str(file)) as opened:
            # of a PNG, in which hardly any camera writes, Pillow would decode everything to know
            turned = opened.format != "PNG" and opened.getexif().get(ORIENTATION, 1) >= 5  # on its side
            width, height = opened.size[::-1] if turned else opened.size
            return (height, width), opened.mode in ("L", "I", "F") or opened.mode.startswith("I;16")
    except UnidentifiedImageError:
        image = _read(file)
        return (image.height, image.width), image.mode == "L"


def _read(file: Path) -> Image.Image:
    """Mode L or RGB, 8 bits, as all of the package sees images."""
    return decode(str(file))


def _sizes_of_boxes(boxes: list[Box]) -> str:
    """A line by which boxes that were given as x, y, width and height can be recognized."""
    if not boxes:
        return ""
    sides = [[max(1, round(box[axis + 2] - box[axis])) for box in boxes] for axis in (0, 1)]
    wide, high = (" to ".join(map(str, sorted({min(of_axis), max(of_axis)}))) for of_axis in sides)
    return f"Boxes (x0,y0,x1,y1): {wide} pixels wide, {high} high.\n"


# ---- doing it --------------------------------------------------------------------------------------------------------


def _run(
    jobs: list[Job],
    predictor: Predictor,
    classes: dict[str, int],
    multimask: bool | None,
    write: Callable[[Job, Image.Image, Objects], None],
) -> tuple[list[tuple[str, int, str, str, int]], list[str]]:
    """Image, number, class, score and pixels of every object, and sentences on images that turned out to be broken."""
    scores, faults = [], []
    for job in tqdm(jobs, "Segmenting", unit="image", disable=len(jobs) < 2):
        try:
            image = _read(job.file)
            for prompt in job.prompts:
                prompt.placed((image.height, image.width))
        except Exception as error:  # readers raise what they like
            faults.append(f"{job.file.name}: {describe_read_error(error)}")
            continue
        objects = find_objects(predictor, image, job.prompts, classes, multimask)
        write(job, image, objects)
        found = zip(job.prompts, objects.scores, objects.areas, strict=True)
        for number, (prompt, score, area) in enumerate(found, start=1):
            scores.append((job.name + job.file.suffix, number, prompt.category, f"{score:.3f}", area))
    return scores, faults


def _has_scores_file(args: argparse.Namespace) -> bool:
    """Of one image after the other in the same folder, each would replace that of the one before."""
    return bool(args.dataset or Path(args.image).is_dir())


def _as_csv(scores: list[tuple[str, int, str, str, int]]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["image", "object", "class", "score", "pixels"])
    for image, number, category, score, pixels in scores:
        rows.writerow([escape_formula(image), number, escape_formula(category), score, pixels])
    return text.getvalue()


# ---- files -----------------------------------------------------------------------------------------------------------


def _mask_file(job: Job, output: Path, args: argparse.Namespace) -> Path:
    """In the format of the image, or PNG where that loses something."""
    suffix = job.file.suffix.lower()
    wide = args.instances and len(job.prompts) > 255
    return output / f"{job.name}_mask{suffix if suffix in LOSSLESS and not (wide and suffix == '.bmp') else '.png'}"


def _overlay_file(job: Job, output: Path) -> Path:
    return output / f"{job.name}_overlay.jpg"


def _check_output(jobs: list[Job], output: Path, args: argparse.Namespace) -> None:
    _check_unique([job.name for job in jobs])
    files = [_mask_file(job, output, args) for job in jobs]
    files += [] if args.no_overlay else [_overlay_file(job, output) for job in jobs]
    files += [output / SCORES] if _has_scores_file(args) else []
    for folder in sorted({file.parent for file in files}):
        check_output_dir(folder)
    in_the_way = [str(file) for file in files if file.is_dir()]
    if in_the_way:
        raise HRMedSegError(
            f"{format_names(in_the_way)}: a file is to be written there, and it is a folder. Give -o another."
        )
    inputs = {job.file.resolve() for job in jobs}
    hit = [str(file) for file in files if file.resolve() in inputs]
    if hit:
        raise HRMedSegError(
            f"{format_names(hit)} would be overwritten, which are images to segment. Give -o another folder."
        )
    there = [str(file) for file in files if file.exists()]
    if there and not args.overwrite:
        raise HRMedSegError(
            f"{format_names(there)} exist already. Give -o another folder, or --overwrite to replace them."
        )


def _check_unique(names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise HRMedSegError(f"Several images would have the same name: {format_names(twice)}. Rename one of them.")


def _write_image(file: Path, image: Image.Image) -> None:
    content = io.BytesIO()
    formats = {".jpg": "JPEG", ".bmp": "BMP", ".png": "PNG"}
    image.save(content, formats.get(file.suffix, "TIFF"), **({"quality": 90} if file.suffix == ".jpg" else {}))
    with reporting_write_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content.getvalue())
