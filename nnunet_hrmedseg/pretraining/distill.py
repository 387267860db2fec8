"""`hrmedseg distill`: from a teacher and a pile of images to an encoder file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.pretraining.canvas_images import BrokenImages, CanvasImages
from nnunet_hrmedseg.pretraining.card import environment
from nnunet_hrmedseg.pretraining.distillation import Distillation, DistillationBatches, TeacherEmbeddings
from nnunet_hrmedseg.pretraining.embedding_cache import EmbeddingCache
from nnunet_hrmedseg.pretraining.image_sources import ImageCollection, find_images
from nnunet_hrmedseg.pretraining.loop import History, LoopSettings, prepare_folder, run_loop, write_atomically
from nnunet_hrmedseg.pretraining.processes import Processes, processes
from nnunet_hrmedseg.pretraining.student import Normalize, Student, encoder_architecture
from nnunet_hrmedseg.pretraining.teachers import load_teacher
from nnunet_hrmedseg.weights.encoder_file import write_encoder

__all__ = ["distill"]

STATISTICS_IMAGES = 64  # from which the mean and deviation of a teacher's channels are taken


def distill(args: argparse.Namespace) -> int:
    """Run the command with the arguments of `pretraining.arguments.add_distill_arguments`.

    Raises:
        HRMedSegError: whatever the user can mend.
    """
    with processes(args.device) as group:
        return _distill(args, group)


def _distill(args: argparse.Namespace, group: Processes) -> int:
    def log(text: str) -> None:
        if group.first:
            print(text, flush=True)

    folder, canvas = Path(args.output), tuple(args.canvas)
    architecture = encoder_architecture(
        embed_dim=args.embed_dim, depth=args.depth, neck=args.neck, decoder_dim=args.decoder_dim
    )
    try:
        student = Student(architecture, drop_path=args.drop_path)
    except ValueError as error:
        raise HRMedSegError(f"No student can be built: {error}.") from error
    options = {key: value for key, value in vars(args).items() if key in TEACHER_OPTIONS and value is not None}
    teacher = load_teacher(args.teacher, kind=args.teacher_kind, canvas=canvas, **options).to(group.device)
    teacher_card = teacher.card()
    if teacher.read_by_decoder and teacher.channels != args.decoder_dim:
        raise HRMedSegError(
            f"The teacher's embedding has {teacher.channels} channels and the student's {args.decoder_dim}: a decoder "
            f"that reads the teacher could not read the student. Use --decoder_dim {teacher.channels}."
        )

    collection = find_images(args.images, limit=args.limit)
    for fault in collection.faults:
        log(f"Not usable: {fault}")
    training, validation = _split(len(collection), args.val_images, args.seed)
    log(f"{len(training):,} images to train on, {len(validation):,} to validate.")
    images = CanvasImages(collection, canvas)
    broken = BrokenImages(collection, expected=-(-len(collection) // group.count), log=print)
    cache = None
    if args.cache:
        shape = _shape_of_embedding(teacher, canvas, group)
        cache = EmbeddingCache(
            Path(args.cache),
            teacher_id=repr(sorted((k, str(v)) for k, v in teacher_card.items())),
            canvas=canvas,
            shape=shape,
            identities=collection.identities,
        )
        log(cache.describe())

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
    normalize = Normalize({"zscore": "zscore", "imagenet": "mean_std"}[args.normalization])
    module = Distillation(student, normalize, teacher.channels, exact=teacher.read_by_decoder)
    recipe = {
        "objective": "mean squared error of the embedding" + ("" if teacher.read_by_decoder else ", standardised"),
        "canvas": list(canvas),
        "epochs": args.epochs,
        "batch_size": args.batch_size * group.count,
        "optimizer": "Adam",
        "learning_rate": args.lr,
        "decay_per_epoch": args.decay,
        "flip": args.flip,
        "drop_path": args.drop_path,
        "seed": args.seed,
    }
    if group.first:
        identity = {
            "command": "distill",
            "teacher": teacher_card,
            "images": len(collection),
            "architecture": architecture,
            "normalization": args.normalization,
            **recipe,
        }
        prepare_folder(folder, identity, overwrite=args.overwrite)
    group.gather(None)
    module.to(group.device)
    if not teacher.read_by_decoder and not (folder / "checkpoint.pth").is_file():
        first = batches.read(training[:STATISTICS_IMAGES])
        module.set_statistics(embeddings for indices, _, embeddings in first if indices)
    history = run_loop(
        module,
        batches,
        settings,
        folder,
        group,
        validate=(lambda: batches.mean_loss(module, validation)) if validation else None,
        log=log,
    )
    broken_reasons = {
        collection[index].name: reason for found in group.gather(broken.reasons) for index, reason in found.items()
    }
    if group.first:
        card = {
            "name": args.name or f"distilled from {teacher_card['name']}",
            "made_by": "hrmedseg distill",
            "architecture": architecture,
            "normalization": normalize.card() | _statistics(images, training, normalize),
            "teacher": teacher_card,
            "data": _data(collection, training, validation, broken_reasons),
            "licences": {"teacher": teacher_card.get("licence", "unknown"), "data": args.data_licence},
            "recipe": recipe,
            "losses": _losses(history),
            **environment(group),
        }
        _finish(folder, student, card, broken_reasons, log)
    return 0


TEACHER_OPTIONS = ("target", "fold", "checkpoint", "scale")


def _split(count: int, validation_images: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to validate: at most a tenth is kept back."""
    held = min(validation_images, count // 10)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[held:]), sorted(order[:held])


def _shape_of_embedding(teacher: Any, canvas: tuple[int, int], group: Processes) -> tuple[int, int, int]:
    with torch.no_grad():
        return tuple(teacher.embed(torch.zeros(1, 3, *canvas, device=group.device)).shape[1:])


def _statistics(images: CanvasImages, indices: list[int], normalize: Normalize) -> dict[str, list[float]]:
    """For "zscore", what an image is like before: the means and deviations of the channels, averaged over images."""
    taken = indices[:: max(1, len(indices) // STATISTICS_IMAGES)][:STATISTICS_IMAGES]
    read = [image.float() / 255 for index in taken if (image := images[index].image) is not None]
    if normalize.scheme == "mean_std" or not read:
        return {}
    return {
        "mean": torch.stack([image.mean((1, 2)) for image in read]).mean(0).tolist(),
        "std": torch.stack([image.std((1, 2)) for image in read]).mean(0).tolist(),
    }


def _data(
    collection: ImageCollection, training: list[int], validation: list[int], broken: dict[str, str]
) -> dict[str, Any]:
    return {
        "sources": {Path(source).name: count for source, count in collection.counts.items()},
        "training_images": len(training),
        "validation_images": len(validation),
        "broken_images": len(broken),
    }


def _losses(history: History) -> dict[str, float | None]:
    return {"training": history.last("loss"), "validation": history.last("validation_loss")}


def _finish(folder: Path, student: Student, card: dict[str, Any], broken: dict[str, str], log) -> None:
    if broken:
        text = "".join(f"{name}: {reason}\n" for name, reason in sorted(broken.items()))
        write_atomically(folder / "broken_images.txt", text.encode())
        log(f"{len(broken)} broken images were skipped, see {folder / 'broken_images.txt'}.")
    file = write_encoder(folder / "encoder.safetensors", student.state_dict(), card)
    log(f"Encoder: {file.path} (sha256 {file.sha256}), card beside it, losses in losses.csv and losses.png.")
    log(f"Train from it:  HRMEDSEG_ENCODER_WEIGHTS={file.path.absolute()} nnUNetv2_train ...")
