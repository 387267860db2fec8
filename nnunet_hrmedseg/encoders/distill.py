"""`hrmedseg distill`: from a teacher and a pile of images to an encoder file."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_hrmedseg.encoders.canvas_images import BrokenImages, CanvasImages
from nnunet_hrmedseg.encoders.card import environment, image_statistics, write_result
from nnunet_hrmedseg.encoders.distillation import Distillation, DistillationBatches, TeacherEmbeddings
from nnunet_hrmedseg.encoders.embedding_cache import EmbeddingCache
from nnunet_hrmedseg.encoders.image_sources import ImageCollection, find_images
from nnunet_hrmedseg.encoders.loop import CHECKPOINT, CONTINUE, LoopSettings, begin_run, check_folder, run_loop
from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.io.files import check_output_dir, reporting_write_errors, write_atomically
from nnunet_hrmedseg.io.processes import Processes, processes
from nnunet_hrmedseg.io.raw_cases import resolve_source
from nnunet_hrmedseg.teachers import Teacher, load_teacher
from nnunet_hrmedseg.weights.encoder_file import EncoderFile
from nnunet_hrmedseg.weights.student import (
    STUDENT_OPTIONS,
    Normalize,
    Student,
    encoder_architecture,
    load_student_weights,
)

__all__ = ["distill"]

STATISTICS_IMAGES = 64  # from which the mean and deviation of a teacher's channels are taken
TEACHER_OPTIONS = ("target", "fold", "checkpoint", "scale")
BROKEN = "broken_images.txt"


def distill(args: argparse.Namespace) -> int:
    """Run the command with the arguments of `pretraining.arguments.add_distill_arguments`.

    Raises:
        HRMedSegError: whatever the user can mend.
    """
    with processes(args.device) as group:
        return _distill(args, group)


def _distill(args: argparse.Namespace, group: Processes) -> int:
    folder, canvas = Path(args.output), tuple(args.canvas)
    if group.first:
        check_folder(folder)
    if args.cache:
        check_output_dir(Path(args.cache))
    architecture = encoder_architecture(**{name: getattr(args, name) for name in STUDENT_OPTIONS})
    student = _student(args, architecture)
    options = {key: value for key, value in vars(args).items() if key in TEACHER_OPTIONS and value is not None}
    teacher = load_teacher(args.teacher, kind=args.teacher_kind, canvas=canvas, **options).to(group.device)
    if teacher.note:
        group.log(f"Note: {teacher.note}")
    if args.promptable:
        if canvas[0] != canvas[1]:
            raise HRMedSegError(f"Promptable networks see a square canvas, not {canvas[0]} x {canvas[1]} pixels.")
        teacher.enable_multiscale()
    teacher_card = teacher.card()
    if teacher.feeds_decoder and teacher.channels != args.decoder_dim:
        raise HRMedSegError(
            f"The teacher's embedding has {teacher.channels} channels and the student's {args.decoder_dim}: a decoder "
            f"that reads the teacher could not read the student. Use --decoder_dim {teacher.channels}."
        )
    if teacher.fine_channels:
        architecture["fine_channels"] = list(teacher.fine_channels)
        student = _student(args, architecture)
    fit = teacher.fit if args.promptable else "stretch"

    collection = find_images(args.images, limit=args.limit)
    for fault in collection.faults:
        group.log(f"Not usable: {fault}")
    training, validation = _split(len(collection), args.val_images, args.seed)
    group.log(f"{len(training):,} images to train on, {len(validation):,} to validate.")
    images = CanvasImages(collection, canvas, fit)

    def note(text: str) -> None:
        print(text, flush=True)
        # at once: a run that is killed has named it, too
        with reporting_write_errors(folder / BROKEN, CONTINUE), open(folder / BROKEN, "a", encoding="utf-8") as file:
            file.write(text.partition(": ")[2] + "\n")

    broken = BrokenImages(collection, log=note)
    cache = _open_cache(args.cache, teacher, teacher_card, images, group) if args.cache else None
    if cache is not None:
        group.log(cache.describe())
    batches = DistillationBatches(
        images,
        training,
        TeacherEmbeddings(teacher, cache, amp=args.amp, device=group.device),
        group,
        broken,
        batch_size=args.batch_size,
        flip=args.flip,
        seed=args.seed,
        workers=args.workers,
    )
    settings = LoopSettings(
        epochs=args.epochs,
        steps_per_epoch=batches.steps_per_epoch,
        images_per_step=args.batch_size * group.count,
        learning_rate=args.lr,
        decay=args.decay,
        amp=args.amp,
        seed=args.seed,
    )
    normalization = args.normalization or ("imagenet" if args.promptable else "zscore")
    normalize = Normalize({"zscore": "zscore", "imagenet": "mean_std"}[normalization])
    started_from = load_student_weights(student, args.start, architecture, normalize) if args.start else None
    module = Distillation(student, normalize, teacher.packed_channels, exact=teacher.feeds_decoder)
    recipe = _recipe(args, teacher, group, started_from)
    identity = {
        "command": "distill",
        "teacher": teacher_card,
        "images": collection.counts,
        "validation_images": len(validation),
        "architecture": architecture,
        "normalization": normalization,
        **recipe,
    }
    begin_run(folder, identity, group, overwrite=args.overwrite)
    _check_readable(images, training, broken)
    module.to(group.device)
    if not teacher.feeds_decoder and not (folder / CHECKPOINT).is_file():
        module.set_statistics(_first_embeddings(batches, training))
    history = run_loop(
        module,
        batches,
        settings,
        folder,
        group,
        validate=(lambda: batches.mean_loss(module, validation)) if validation else None,
        log=group.log,
    )
    group.wait()
    if group.first:
        broken_lines = _broken_lines(folder / BROKEN)
        card = {
            "name": args.name or f"distilled from {teacher_card['name']}",
            "made_by": "hrmedseg distill",
            "architecture": architecture,
            "normalization": normalize.card() | _statistics(images, training, normalize),
            "teacher": teacher_card,
            **({"decoder_id": teacher.decoder_id} if teacher.decoder_id else {}),
            "data": {
                "sources": _source_names(collection),
                "training_images": len(training),
                "validation_images": len(validation),
                "broken_images": len(broken_lines),
            },
            "licences": {"teacher": teacher_card.get("licence", "unknown"), "data": args.data_licence},
            "recipe": recipe,
            "losses": {"training": history.last("loss"), "validation": history.last("validation_loss")},
            **environment(group),
        }
        if broken_lines:
            group.log(f"{len(broken_lines)} broken images were skipped, see {folder / BROKEN}.")
        file = write_result(folder, student.state_dict(), card)
        if args.promptable:
            print(f"Segment with it:  hrmedseg segment IMAGE --encoder {file.path} --sam {args.teacher} --box ...")
    return 0


def _student(args: argparse.Namespace, architecture: dict[str, Any]) -> Student:
    torch.manual_seed(args.seed)
    try:
        return Student(architecture, drop_path=args.drop_path)
    except ValueError as error:
        raise HRMedSegError(f"No student can be built: {error}.") from error


def _recipe(
    args: argparse.Namespace, teacher: Teacher, group: Processes, started_from: EncoderFile | None
) -> dict[str, Any]:
    """What the card says of the training, and what must be the same when a run goes on."""
    what = "the embedding, and of each finer level" if teacher.fine_channels else "the embedding"
    return {
        "objective": f"mean squared error of {what}" + ("" if teacher.feeds_decoder else ", standardised"),
        "canvas": list(args.canvas),
        "epochs": args.epochs,
        "batch_size": args.batch_size * group.count,
        "optimizer": "Adam",
        "learning_rate": args.lr,
        "decay_per_epoch": args.decay,
        "flip": args.flip,
        "drop_path": args.drop_path,
        "seed": args.seed,
        "started_from": started_from and started_from.sha256,
        **({"fit": teacher.fit} if args.promptable else {}),
    }


def _open_cache(
    folder: str,
    teacher: Teacher,
    teacher_card: dict[str, Any],
    images: CanvasImages,
    group: Processes,
) -> EmbeddingCache:
    with torch.no_grad():
        _, *shape = teacher.embed(torch.zeros(1, 3, *images.canvas, device=group.device)).shape
    seen_as = "" if images.fit == "stretch" else f", images fitted by {images.fit}"
    return EmbeddingCache(
        Path(folder),
        teacher_id=repr(sorted((k, str(v)) for k, v in teacher_card.items())) + seen_as,
        canvas=images.canvas,
        shape=(shape[0], shape[1], shape[2]),
        identities=images.collection.identities,
    )


def _split(count: int, validation_images: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to validate: at most a tenth is kept back."""
    held = min(validation_images, count // 10)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[held:]), sorted(order[:held])


def _statistics(images: CanvasImages, indices: list[int], normalize: Normalize) -> dict[str, list[float]]:
    """For "zscore", what an image is like before: the means and deviations of the channels, averaged over images."""
    taken = _evenly(indices)[:STATISTICS_IMAGES]
    read = [image.float() / 255 for index in taken if (image := images[index].image) is not None]
    if normalize.scheme == "mean_std" or not read:
        return {}
    return image_statistics(read)


def _evenly(indices: list[int]) -> list[int]:
    """All of them in another order: the first STATISTICS_IMAGES are spread over the whole list."""
    step = max(1, -(-len(indices) // STATISTICS_IMAGES))
    return [index for start in range(step) for index in indices[start::step]]


def _check_readable(images: CanvasImages, training: list[int], broken: BrokenImages) -> None:
    for index in training:
        item = images[index]
        if item.image is not None:
            return
        broken.add(index, item.reason)
    raise HRMedSegError(f"None of the {len(training)} images to train on can be read: {broken.summary(names=3)}.")


def _first_embeddings(batches: DistillationBatches, training: list[int]) -> Iterator[Tensor]:
    """The teacher's embeddings of the first readable images."""
    found = 0
    for indices, _, embeddings in batches.read(_evenly(training)):
        if indices:
            yield embeddings
        found += len(indices)
        if found >= STATISTICS_IMAGES:
            return


def _broken_lines(file: Path) -> list[str]:
    """Names and reasons of the broken images, each once; the file is put in order."""
    if not file.is_file():
        return []
    lines = sorted(set(file.read_text(encoding="utf-8", errors="replace").splitlines()))
    with reporting_write_errors(file, CONTINUE):
        write_atomically(file, "".join(f"{line}\n" for line in lines).encode())
    return lines


def _source_names(collection: ImageCollection) -> dict[str, int]:
    """How many images each source gave, by the last part of its path: a card tells nothing of the machine's folders."""
    names: Counter[str] = Counter()
    for source, count in collection.counts.items():
        names[resolve_source(source).name] += count
    return dict(names)
