"""Distill an encoder: from a teacher and unlabeled images to an encoder file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_hrmedseg.encoders.canvas_images import BrokenImages, CanvasImages
from nnunet_hrmedseg.encoders.card import environment, image_statistics, write_result
from nnunet_hrmedseg.encoders.distillation import Distillation, DistillationBatches, TeacherEmbeddings
from nnunet_hrmedseg.encoders.embedding_cache import EmbeddingCache
from nnunet_hrmedseg.encoders.history import History
from nnunet_hrmedseg.encoders.image_sources import ImageCollection, find_images
from nnunet_hrmedseg.encoders.loop import LoopSettings, run_loop
from nnunet_hrmedseg.encoders.options import (
    DistillationOptions,
    EncoderResult,
    RunOptions,
    StudentOptions,
    TeacherOptions,
)
from nnunet_hrmedseg.encoders.run_folder import CHECKPOINT, CONTINUE, check_folder, open_run
from nnunet_hrmedseg.errors import DataError, PlanError
from nnunet_hrmedseg.io.files import check_output_dir, reporting_write_errors, write_atomically
from nnunet_hrmedseg.io.processes import Processes, processes
from nnunet_hrmedseg.io.raw_cases import resolve_source
from nnunet_hrmedseg.teachers import Teacher, load_teacher
from nnunet_hrmedseg.weights.student import Normalize, Student, load_student_weights

__all__ = ["distill"]

STATISTICS_IMAGES = 64  # from which the mean and standard deviation of a teacher's channels are computed
BROKEN = "broken_images.txt"


def distill(
    *,
    teacher: str | os.PathLike,
    images: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    limit: int | None = None,
    cache: str | os.PathLike | None = None,
    teacher_options: TeacherOptions | None = None,
    student: StudentOptions | None = None,
    recipe: DistillationOptions | None = None,
    run: RunOptions | None = None,
) -> EncoderResult:
    """Train the small encoder of HRMedSeg to reproduce the image embedding of a large teacher.

    A run that was stopped continues when the function is called again with the same arguments. Under torchrun, all
    processes train together, and the first one writes the files.

    Args:
        teacher: SAM's original .pth; a folder of SAM2 or SAM2.1 in the format of transformers; or the folder of a
            trained 2D nnU-Net. Also the name of one on the hub (hf://...).
        images: Folders of images, SA-1B shards (sa_*.tar, or a folder of them), and nnU-Net raw datasets (folder, name
            or number). Labels are not needed.
        output: Folder for encoder, card, losses and checkpoint: new, empty, or that of the same run.
        limit: Maximum number of images, selected by a hash of their names; None for all.
        cache: Folder for the teacher's embeddings in half precision, so that they are computed once; None computes
            them in every epoch.
        teacher_options: How the teacher is loaded.
        student: The network that is trained.
        recipe: Epochs, batch size, learning rate.
        run: Device, seed, name on the card.

    Returns:
        Path of the encoder file, losses and numbers of images.

    Raises:
        CheckpointError: The teacher or the encoder to start from is missing, damaged, or does not fit.
        DataError: No image can be found or read.
        PlanError: Options that cannot be combined, or a loss that is not finite.
        SetupError: The output folder cannot be used, or the device or a package is missing.

    Examples:
        ```python
        from pathlib import Path

        import numpy as np
        from PIL import Image

        from nnunet_hrmedseg import DistillationOptions, RunOptions, StudentOptions, distill

        Path("images").mkdir()
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
            Image.fromarray(pixels).save(f"images/{number}.png")
        result = distill(
            teacher="sam_tiny.pth",  # in practice sam_vit_h_4b8939.pth, with the default sizes of StudentOptions
            images=["images"],
            output="encoder",
            student=StudentOptions(canvas=(64, 64), embed_dim=24, depth=1, decoder_dim=16),
            recipe=DistillationOptions(epochs=1, batch_size=2),
            run=RunOptions(device="cpu", workers=0),
        )
        assert result.path.is_file() and result.training_images == 4
        ```
    """
    run = run or RunOptions()
    with processes(run.device) as group:
        distillation = _DistillationRun(
            teacher=teacher,
            output=Path(output),
            teacher_options=teacher_options or TeacherOptions(),
            student=student or StudentOptions(),
            recipe=recipe or DistillationOptions(),
            run=run,
            group=group,
        )
        distillation.check_places(cache)
        distillation.load_networks()
        distillation.load_images(images, limit)
        distillation.prepare_batches(cache)
        distillation.prepare_student()
        with open_run(distillation.folder, distillation.identity(), group, overwrite=run.overwrite):
            return distillation.finish(distillation.train())


class _DistillationRun:
    """One distillation; the methods are called in the order in which they are defined.

    The order also fixes which random numbers the weights get: the student is built before the teacher is loaded.
    """

    def __init__(
        self,
        *,
        teacher: str | os.PathLike,
        output: Path,
        teacher_options: TeacherOptions,
        student: StudentOptions,
        recipe: DistillationOptions,
        run: RunOptions,
        group: Processes,
    ) -> None:
        self.teacher_path, self.folder, self.teacher_options = teacher, output, teacher_options
        self.student_options, self.recipe, self.run, self.group = student, recipe, run, group
        self.canvas = (int(student.canvas[0]), int(student.canvas[1]))
        self.architecture = student.architecture()

    def check_places(self, cache: str | os.PathLike | None) -> None:
        """Check the output folder and the folder of the cache before anything is loaded."""
        if self.group.first:
            check_folder(self.folder)
        if cache:
            check_output_dir(Path(cache))

    def load_networks(self) -> None:
        """Build the student and load the teacher."""
        self.student = self._build_student()
        options = self.teacher_options
        teacher = load_teacher(self.teacher_path, kind=options.kind, canvas=self.canvas, **options.given())
        self.teacher: Teacher = teacher.to(self.group.device)
        if teacher.note:
            self.group.log(f"Note: {teacher.note}")
        if self.recipe.promptable:
            if self.canvas[0] != self.canvas[1]:
                height, width = self.canvas
                raise PlanError(f"Promptable networks see a square canvas, not {height} x {width} pixels.")
            teacher.enable_multiscale()
        self.teacher_card = teacher.card()
        if teacher.feeds_decoder and teacher.channels != self.student_options.decoder_dim:
            raise PlanError(
                f"The teacher's embedding has {teacher.channels} channels and the student's "
                f"{self.student_options.decoder_dim}: a decoder that reads the teacher could not read the student. Use "
                f"--decoder_dim {teacher.channels}."
            )
        if teacher.fine_channels:
            self.architecture["fine_channels"] = list(teacher.fine_channels)
            self.student = self._build_student()

    def _build_student(self) -> Student:
        torch.manual_seed(self.run.seed)
        try:
            return Student(self.architecture, drop_path=self.student_options.drop_path)
        except ValueError as error:
            raise PlanError(f"No student can be built: {error}.") from error

    def load_images(self, sources: Sequence[str | os.PathLike], limit: int | None) -> None:
        """Find the images, and split them into those for training and those for validation."""
        self.collection = find_images([os.fspath(source) for source in sources], limit=limit)
        for problem in self.collection.faults:
            self.group.log(f"Not usable: {problem}")
        self.training, self.validation = _split(len(self.collection), self.recipe.validation_images, self.run.seed)
        self.group.log(f"{len(self.training):,} images to train on, {len(self.validation):,} to validate.")
        fit = self.teacher.fit if self.recipe.promptable else "stretch"
        self.images = CanvasImages(self.collection, self.canvas, fit)
        self.broken = BrokenImages(self.collection, log=self._report_broken)

    def _report_broken(self, text: str) -> None:
        """Print the line of a broken image and save it at once, so that a run that is killed has named the image."""
        print(text, flush=True)
        file = self.folder / BROKEN
        with reporting_write_errors(file, CONTINUE), open(file, "a", encoding="utf-8") as opened:
            opened.write(text.partition(": ")[2] + "\n")

    def prepare_batches(self, cache_folder: str | os.PathLike | None) -> None:
        """Prepare the batches of images and embeddings."""
        cache = None
        if cache_folder:
            cache = _open_cache(Path(cache_folder), self.teacher, self.teacher_card, self.images, self.group)
            self.group.log(cache.describe())
        self.batches = DistillationBatches(
            self.images,
            self.training,
            TeacherEmbeddings(self.teacher, cache, amp=self.run.amp, device=self.group.device),
            self.group,
            self.broken,
            batch_size=self.recipe.batch_size,
            flip=self.recipe.flip,
            seed=self.run.seed,
            workers=self.run.workers,
        )

    def prepare_student(self) -> None:
        """Load the weights that the student starts from, and put it beside the teacher's embedding."""
        self.normalize = Normalize({"zscore": "zscore", "imagenet": "mean_std"}[self.recipe.resolved_normalization])
        start, sha256 = self.student_options.start, None
        if start:
            sha256 = load_student_weights(self.student, os.fspath(start), self.architecture, self.normalize).sha256
        exact = self.teacher.feeds_decoder
        self.module = Distillation(self.student, self.normalize, self.teacher.packed_channels, exact=exact)
        self.recipe_card = self._recipe_card(sha256)

    def train(self) -> History:
        """Train the student, or continue its training."""
        settings = LoopSettings(
            epochs=self.recipe.epochs,
            steps_per_epoch=self.batches.steps_per_epoch,
            images_per_step=self.recipe.batch_size * self.group.count,
            learning_rate=self.recipe.learning_rate,
            decay=self.recipe.decay,
            amp=self.run.amp,
            seed=self.run.seed,
        )
        _check_readable(self.images, self.training, self.broken)
        module = self.module.to(self.group.device)
        if not self.teacher.feeds_decoder and not (self.folder / CHECKPOINT).is_file():
            module.set_statistics(_first_embeddings(self.batches, self.training))
        validate = (lambda: self.batches.mean_loss(module, self.validation)) if self.validation else None
        return run_loop(module, self.batches, settings, self.folder, self.group, validate=validate, log=self.group.log)

    def finish(self, history: History) -> EncoderResult:
        """Write the encoder file and its card."""
        self.group.wait()
        broken = _sort_broken_lines(self.folder / BROKEN) if self.group.first else []
        result = EncoderResult(
            path=self.folder / "encoder.safetensors",
            training_loss=history.last("loss"),
            validation_loss=history.last("validation_loss"),
            training_images=len(self.training),
            validation_images=len(self.validation),
            broken_images=len(broken),
        )
        if self.group.first:
            if broken:
                self.group.log(f"{len(broken)} broken images were skipped, see {self.folder / BROKEN}.")
            file = write_result(self.folder, self.student.state_dict(), self._card(result))
            if self.recipe.promptable:
                self.group.log(
                    f"Segment with it:  hrmedseg segment IMAGE --encoder {file.path} --sam {self.teacher_path} "
                    f"--box ..."
                )
        return result

    def identity(self) -> dict[str, Any]:
        """Return everything that must be the same for a run to be continued."""
        return {
            "command": "distill",
            "teacher": self.teacher_card,
            "images": self.collection.counts,
            "validation_images": len(self.validation),
            "architecture": self.architecture,
            "normalization": self.recipe.resolved_normalization,
            **self.recipe_card,
        }

    def _recipe_card(self, started_from: str | None) -> dict[str, Any]:
        """Return what the card says about the training."""
        what = "the embedding, and of each finer level" if self.teacher.fine_channels else "the embedding"
        return {
            "objective": f"mean squared error of {what}" + ("" if self.teacher.feeds_decoder else ", standardized"),
            "canvas": list(self.canvas),
            "epochs": self.recipe.epochs,
            "batch_size": self.recipe.batch_size * self.group.count,
            "optimizer": "Adam",
            "learning_rate": self.recipe.learning_rate,
            "decay_per_epoch": self.recipe.decay,
            "flip": self.recipe.flip,
            "drop_path": self.student_options.drop_path,
            "seed": self.run.seed,
            "started_from": started_from,
            **({"fit": self.teacher.fit} if self.recipe.promptable else {}),
        }

    def _card(self, result: EncoderResult) -> dict[str, Any]:
        teacher = self.teacher_card
        return {
            "name": self.run.name or f"distilled from {teacher['name']}",
            "made_by": "hrmedseg distill",
            "architecture": self.architecture,
            "normalization": self.normalize.card() | _statistics(self.images, self.training, self.normalize),
            "teacher": teacher,
            **({"decoder_id": self.teacher.decoder_id} if self.teacher.decoder_id else {}),
            "data": {
                "sources": _source_names(self.collection),
                "training_images": result.training_images,
                "validation_images": result.validation_images,
                "broken_images": result.broken_images,
            },
            "licenses": {"teacher": teacher.get("license", "unknown"), "data": self.run.data_license},
            "recipe": self.recipe_card,
            "losses": {"training": result.training_loss, "validation": result.validation_loss},
            **environment(self.group),
        }


def _open_cache(
    folder: Path, teacher: Teacher, teacher_card: dict[str, Any], images: CanvasImages, group: Processes
) -> EmbeddingCache:
    with torch.no_grad():
        _, *shape = teacher.embed(torch.zeros(1, 3, *images.canvas, device=group.device)).shape
    fitted = "" if images.fit == "stretch" else f", images fitted by {images.fit}"
    return EmbeddingCache(
        folder,
        teacher_id=repr(sorted((k, str(v)) for k, v in teacher_card.items())) + fitted,
        canvas=images.canvas,
        shape=(shape[0], shape[1], shape[2]),
        identities=images.collection.identities,
    )


def _split(count: int, validation_images: int, seed: int) -> tuple[list[int], list[int]]:
    """Return indices to train on and indices to validate: at most a tenth of all."""
    held = min(validation_images, count // 10)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[held:]), sorted(order[:held])


def _statistics(images: CanvasImages, indices: list[int], normalize: Normalize) -> dict[str, list[float]]:
    """Return means and standard deviations of the channels over images before "zscore"; nothing for "mean_std"."""
    read = [
        image.float() / 255
        for index in _spread(indices)[:STATISTICS_IMAGES]
        if (image := images[index].image) is not None
    ]
    if normalize.scheme == "mean_std" or not read:
        return {}
    return image_statistics(read)


def _spread(indices: list[int]) -> list[int]:
    """Return all indices in another order: the first STATISTICS_IMAGES are spread over the whole list."""
    step = max(1, -(-len(indices) // STATISTICS_IMAGES))
    return [index for start in range(step) for index in indices[start::step]]


def _check_readable(images: CanvasImages, training: list[int], broken: BrokenImages) -> None:
    for index in training:
        item = images[index]
        if item.image is not None:
            return
        broken.add(index, item.reason)
    raise DataError(f"None of the {len(training)} images to train on can be read: {broken.summary(names=3)}.")


def _first_embeddings(batches: DistillationBatches, training: list[int]) -> Iterator[Tensor]:
    """Yield the teacher's embeddings of the first readable images."""
    found = 0
    for indices, _, embeddings in batches.read(_spread(training)):
        if indices:
            yield embeddings
        found += len(indices)
        if found >= STATISTICS_IMAGES:
            return


def _sort_broken_lines(file: Path) -> list[str]:
    """Return names and reasons of the broken images, each once, and write them in this order."""
    if not file.is_file():
        return []
    lines = sorted(set(file.read_text(encoding="utf-8", errors="replace").splitlines()))
    with reporting_write_errors(file, CONTINUE):
        write_atomically(file, "".join(f"{line}\n" for line in lines).encode())
    return lines


def _source_names(collection: ImageCollection) -> dict[str, int]:
    """Return the number of images of each source, by the last part of its path: a card must not contain local paths."""
    names: Counter[str] = Counter()
    for source, count in collection.counts.items():
        names[resolve_source(source).name] += count
    return dict(names)
