"""Feature distillation: the student learns the teacher's image embedding (v1, section 3.4 and Eq. 9).

The objective is the mean squared error between the two embeddings, nothing else.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from nnunet_hrmedseg.architectures.lgvit import PATCH_SIZE
from nnunet_hrmedseg.encoders.canvas_images import BrokenImages, CanvasBatch, CanvasImages
from nnunet_hrmedseg.encoders.embedding_cache import EmbeddingCache
from nnunet_hrmedseg.io.processes import Processes
from nnunet_hrmedseg.io.stored_images import VOLUMES_KEPT
from nnunet_hrmedseg.teachers.teacher import Teacher
from nnunet_hrmedseg.weights.student import Normalize, Student

__all__ = ["Distillation", "DistillationBatches", "TeacherEmbeddings"]


class Distillation(nn.Module):
    """Student and objective: computes the mean squared error of the embedding of a batch.

    Args:
        student: The network that is trained.
        normalize: Normalization that the student's first layer expects.
        teacher_channels: width of the teacher's embedding.
        exact: The student must reproduce exactly the teacher's values, because a decoder reads them. If not, it learns
            the standardized embedding (see `set_statistics`) through a linear map that is discarded afterwards, so
            that its width is independent of the teacher's.

    Raises:
        ValueError: `exact` is set, and the widths differ.
    """

    def __init__(self, student: Student, normalize: Normalize, teacher_channels: int, *, exact: bool) -> None:
        super().__init__()
        width = sum(student.level_channels)
        if exact and width != teacher_channels:
            raise ValueError(f"the student gives {width} channels and the teacher {teacher_channels}")
        self.student, self.normalize, self.exact = student, normalize, exact
        self.adapter: nn.Module = nn.Identity() if exact else nn.Conv2d(width, teacher_channels, kernel_size=1)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(teacher_channels))
        self.register_buffer("std", torch.ones(teacher_channels))

    def set_statistics(self, embeddings: Iterable[Tensor]) -> None:
        """Compute mean and standard deviation of every channel of the teacher from embeddings (B, channels, h, w)."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for embedding in embeddings:
            values = embedding.cpu().double().movedim(1, 0).flatten(1)
            count += values.shape[1]
            total = total + values.sum(1)
            squares = squares + values.square().sum(1)
        mean = total / count
        self.mean.copy_(mean)
        self.std.copy_((squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(1e-3))

    def forward(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Images (B, 3, H, W) in 0..1, the teacher's embeddings (B, channels, h, w) and weights (B,) -> scalar."""
        images, target, weight = batch
        embedding = self.adapter(self.student(self.normalize(images)))
        if target.shape[2:] != embedding.shape[2:]:
            target = F.interpolate(target, size=embedding.shape[2:], mode="bilinear", align_corners=False)
        target = (target - self.mean[:, None, None]) / self.std[:, None, None]
        squares = (embedding.float() - target).square()
        widths = self.student.level_channels if self.exact else [squares.shape[1]]
        *finer, error = (level.mean((1, 2, 3)) for level in squares.split(widths, 1))
        if finer:
            # the levels of SAM2 have other scales, and would dominate the embedding: each is scaled to its variance
            *of_finer, of_embedding = (level.var().clamp_min(1e-12) for level in target.split(widths, 1))
            for level, variance in zip(finer, of_finer, strict=True):
                error = error + level * (of_embedding / variance)
        return (error * weight).sum() / weight.sum().clamp_min(1)


class TeacherEmbeddings:
    """The teacher's embeddings of images, from the cache if they are in it."""

    def __init__(self, teacher: Teacher, cache: EmbeddingCache | None, *, amp: bool, device: torch.device) -> None:
        self.teacher, self.cache, self.amp, self.device = teacher, cache, amp, device

    @torch.no_grad()
    def __call__(self, batch: CanvasBatch) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, H, W) in 0..1 and embeddings (B, channels, h, w) of a batch, on the device."""
        images = batch.images.to(self.device, non_blocking=True).float() / 255
        indices = batch.indices.tolist()
        known = {} if self.cache is None else {i: e for i in indices if (e := self.cache.get(i)) is not None}
        missing = [position for position, index in enumerate(indices) if index not in known]
        if missing:
            with torch.autocast(self.device.type, enabled=self.amp and self.device.type == "cuda"):
                made = self.teacher.embed(images[missing]).float()
            if self.cache is not None:
                self.cache.put([indices[position] for position in missing], made)
                made = made.half().float()  # the first pass learns from the same numbers as all later ones
            known |= {indices[position]: embedding for position, embedding in zip(missing, made, strict=True)}
        return images, torch.stack([known[index].to(self.device) for index in indices])


class DistillationBatches:
    """The batches of every epoch, divided among the processes; the same for the same seed.

    Images are shuffled, but slices within a few volumes at a time: each volume is then read once by each process and
    worker, instead of for every slice. One volume at a time would fill whole batches with similar slices.

    A broken image is left out of its batch. A flip from left to right is applied to both image and embedding, so that
    cached embeddings can be used.

    Args:
        images: all images.
        indices: those to train on.
        embeddings: of the teacher.
        group: this process and the others.
        broken: notes the images that cannot be read.
        batch_size: of this process.
        flip: probability of a flip.
        seed: of order and flips.
        workers: processes that read images for this one.
    """

    def __init__(
        self,
        images: CanvasImages,
        indices: list[int],
        embeddings: TeacherEmbeddings,
        group: Processes,
        broken: BrokenImages,
        *,
        batch_size: int,
        flip: float,
        seed: int,
        workers: int,
    ) -> None:
        self.images, self.indices, self.embeddings, self.group, self.broken = images, indices, embeddings, group, broken
        self.batch_size, self.flip, self.seed, self.workers = batch_size, flip, seed, workers
        self.volumes = _numbered([images.collection[index].volume for index in indices])

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.indices) // (self.batch_size * self.group.count))

    def order(self, epoch: int) -> tuple[list[int], list[bool]]:
        """Return the images of this process in an epoch, and whether each is flipped."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**64)
        wanted = self.steps_per_epoch * self.batch_size * self.group.count
        order = torch.randperm(len(self.indices), generator=generator)
        flips = torch.rand(wanted, generator=generator) < self.flip
        order = _few_volumes_at_a_time(order, self.volumes, generator)
        order = order.repeat(-(-wanted // len(self.indices)))[:wanted]
        mine = slice(self.group.rank, None, self.group.count)
        return [self.indices[i] for i in order[mine].tolist()], flips[mine].tolist()

    def __call__(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield images (B, 3, H, W) in 0..1, embeddings (B, channels, h, w) and weights (B,) of each step.

        The weight is 0 if no image of a batch can be read; the batch is then one black image.
        """
        order, flips = self.order(epoch)
        order, flips = order[first_step * self.batch_size :], flips[first_step * self.batch_size :]
        for number, (indices, images, embeddings) in enumerate(self.read(order)):
            batch = slice(number * self.batch_size, (number + 1) * self.batch_size)
            if not len(indices):
                images = torch.zeros(1, 3, *self.images.canvas, device=self.group.device)
                height, width = (side // PATCH_SIZE for side in self.images.canvas)
                embeddings = images.new_zeros(1, self.embeddings.teacher.packed_channels, height, width)
                yield images, embeddings, images.new_zeros(1)
                continue
            flipped = dict(zip(order[batch], flips[batch], strict=True))
            turned = [i for i, index in enumerate(indices) if flipped[index]]
            if turned:
                images[turned] = images[turned].flip(3)
                embeddings[turned] = self.embeddings.teacher.flipped(embeddings[turned])
            yield images, embeddings, images.new_ones(len(images))

    def read(self, order: list[int]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Yield indices, images and embeddings of the images in `order`, batch by batch, without broken images."""
        loader = DataLoader(
            self.images,
            sampler=order,
            batch_size=self.batch_size,
            num_workers=self.workers,
            collate_fn=self.images.collate,
            generator=torch.Generator(),  # a loader draws a number; not from where stochastic depth draws
            pin_memory=self.group.device.type == "cuda",
        )
        for batch in loader:
            for index, reason in batch.broken:
                self.broken.add(index, reason)
            if len(batch.indices):
                yield batch.indices.tolist(), *self.embeddings(batch)
            else:
                yield [], batch.images, batch.images

    def mean_loss(self, module: Distillation, indices: list[int]) -> float | None:
        """Return the mean loss of validation images, shared between the processes; None if all are broken."""
        mine = indices[self.group.rank :: self.group.count]
        total = torch.zeros(2, device=self.group.device)
        with torch.no_grad():
            for known, images, embeddings in self.read(mine):
                if known:
                    loss = module((images, embeddings, images.new_ones(len(images))))
                    total += torch.stack([loss.float() * len(images), total.new_tensor(len(images))])
        total = self.group.mean(total)
        return (total[0] / total[1]).item() if total[1] > 0 else None


def _numbered(volumes: Sequence[Hashable | None]) -> Tensor:
    """Return the volume of each image as a number from 0 on; -1 for an image that is not a slice."""
    numbers: dict[Hashable | None, int] = {None: -1}
    return torch.tensor([numbers.setdefault(volume, len(numbers) - 1) for volume in volumes])


def _few_volumes_at_a_time(order: Tensor, volumes: Tensor, generator: torch.Generator) -> Tensor:
    """Return an order in which slices are grouped: those of VOLUMES_KEPT volumes first, those of as many others next.

    Single images keep their places.

    Args:
        order: A permutation of the images.
        volumes: Volume of each image, see `_numbered`.
        generator: Draws which volumes are grouped.
    """
    volumes = volumes[order]
    is_slice = volumes >= 0
    blocks = torch.randperm(int(volumes.max()) + 1, generator=generator) // VOLUMES_KEPT
    order = order.clone()
    order[is_slice] = order[is_slice][blocks[volumes[is_slice]].argsort(stable=True)]
    return order
