"""Options of `distill` and `pretrain`, in groups, and their result."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnunet_hrmedseg.errors import PlanError
from nnunet_hrmedseg.weights.student import encoder_architecture

__all__ = [
    "DistillationOptions",
    "EncoderResult",
    "PretrainingOptions",
    "RunOptions",
    "StudentOptions",
    "TeacherOptions",
]


@dataclass(frozen=True, kw_only=True)
class StudentOptions:
    """The network that is trained: encoder and neck of HRMedSeg.

    Attributes:
        canvas: Height and width in pixels that images are resized to, multiples of 16.
        start: Encoder file to start from; None for random weights.
        embed_dim: Width of the encoder.
        depth: Number of encoder blocks.
        neck: "1x1_3x3" as in HRMedSeg, or "3x3_1x1" as in HER-Seg.
        decoder_dim: Width behind the neck.
        drop_path: Rate of stochastic depth, from 0 to below 1.
    """

    canvas: tuple[int, int] = (1024, 1024)
    start: str | os.PathLike | None = None
    embed_dim: int = 96
    depth: int = 10
    neck: str = "1x1_3x3"
    decoder_dim: int = 256
    drop_path: float = 0.1

    def architecture(self) -> dict[str, Any]:
        """Return the arguments that decide which weights the encoder file has."""
        return encoder_architecture(
            embed_dim=self.embed_dim, depth=self.depth, neck=self.neck, decoder_dim=self.decoder_dim
        )


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is executed, and what the card says about its data.

    Attributes:
        name: Name of the encoder on its card; None names it after its teacher or datasets.
        data_license: License of the images, for the card.
        overwrite: Start again where an earlier run left its folder, instead of continuing it.
        device: "cuda", "mps" or "cpu"; None for the first that is available.
        amp: Train in mixed precision on CUDA.
        workers: Number of processes that read images.
        seed: Seed of random numbers.
    """

    name: str | None = None
    data_license: str = "not stated"
    overwrite: bool = False
    device: str | None = None
    amp: bool = True
    workers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        _check_whole(workers=(self.workers, 0), seed=(self.seed, 0))
        if self.seed >= 2**63:
            raise PlanError(f"seed must be below 2**63, which torch can take, not {self.seed}.")


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """How a teacher is loaded.

    Attributes:
        kind: "sam", "sam2" or "nnunet"; None recognizes it by its files.
        target: What the student learns from an nnU-Net: "features" (default) or "logits".
        fold: Fold of an nnU-Net; None for the first that is trained.
        checkpoint: Name of the checkpoint file in the fold; None for checkpoint_final.pth, else checkpoint_best.pth.
        scale: Factor by which images are resized for an nnU-Net, to the pixel size it was trained at; None for 1.
    """

    kind: str | None = None
    target: str | None = None
    fold: str | int | None = None
    checkpoint: str | None = None
    scale: float | None = None

    def given(self) -> dict[str, Any]:
        """Return the options that are set, without `kind`."""
        return {name: value for name, value in asdict(self).items() if name != "kind" and value is not None}


@dataclass(frozen=True, kw_only=True)
class DistillationOptions:
    """The recipe of `distill`.

    Attributes:
        epochs: Number of passes over the images.
        batch_size: Images in a batch of each process.
        learning_rate: Of Adam.
        decay: Factor on the learning rate from one epoch to the next.
        flip: Probability that an image is mirrored.
        validation_images: Number of images for validation, at most a tenth of all.
        normalization: Of the student's images: "zscore", of each image and channel as nnU-Net does for natural images,
            or "imagenet"; None for zscore, or for imagenet with `promptable`.
        promptable: Make an encoder for `segment`: images are put on the canvas as the teacher's own predictor does
            (SAM: padded), and the levels at 1/4 and 1/8 of SAM2 are learned as well.
    """

    epochs: int = 20
    batch_size: int = 4
    learning_rate: float = 1e-3
    decay: float = 0.98
    flip: float = 0.1
    validation_images: int = 64
    normalization: str | None = None
    promptable: bool = False

    def __post_init__(self) -> None:
        _check_whole(
            epochs=(self.epochs, 1), batch_size=(self.batch_size, 1), validation_images=(self.validation_images, 0)
        )
        _check_finite(learning_rate=self.learning_rate, decay=self.decay, flip=self.flip)
        if self.decay == 0 or self.flip > 1:
            raise PlanError(f"decay must be above 0 and flip at most 1, not {self.decay:g} and {self.flip:g}.")
        if self.normalization not in (None, "zscore", "imagenet"):
            raise PlanError(f"normalization must be zscore or imagenet, not {self.normalization!r}.")

    @property
    def resolved_normalization(self) -> str:
        """The normalization, with the default of `promptable` filled in."""
        return self.normalization or ("imagenet" if self.promptable else "zscore")


@dataclass(frozen=True, kw_only=True)
class PretrainingOptions:
    """The recipe of `pretrain`.

    Attributes:
        image_steps: Length of the training: number of images seen, repetitions included.
        batch_size: Images in a batch of each process.
        learning_rate: Of Adam.
        zoom: Smallest and largest magnification: windows of the images are magnified up to the second (a small canvas
            then trains for a large one), and whole images are shown between mirrored copies down to the first. (1, 1)
            shows whole images.
    """

    image_steps: int = 20000
    batch_size: int = 8
    learning_rate: float = 4e-4
    zoom: tuple[float, float] = (1, 1)

    def __post_init__(self) -> None:
        _check_whole(image_steps=(self.image_steps, 1), batch_size=(self.batch_size, 1))
        _check_finite(learning_rate=self.learning_rate)
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise PlanError(f"--zoom {self.zoom[0]:g} {self.zoom[1]:g}: the lower magnification comes first.")


@dataclass(frozen=True)
class EncoderResult:
    """An encoder that `distill` or `pretrain` has made.

    Attributes:
        path: The encoder file; its card is beside it. Read it with `load_encoder`.
        training_loss: Mean loss of the last steps; None if nothing was trained.
        validation_loss: Loss of the validation images after the last epoch; None without validation.
        training_images: Number of images to train on.
        validation_images: Number of images for validation.
        broken_images: Number of images that could not be read and were left out.
    """

    path: Path
    training_loss: float | None
    validation_loss: float | None
    training_images: int
    validation_images: int = 0
    broken_images: int = 0


def _check_whole(**options: tuple[int, int]) -> None:
    for name, (value, least) in options.items():
        if type(value) is not int or value < least:
            raise PlanError(f"{name} must be a whole number of at least {least}, not {value!r:.100}.")


def _check_finite(**options: float) -> None:
    for name, value in options.items():
        if not (math.isfinite(value) and value >= 0):
            raise PlanError(f"{name} must be a number of at least 0, not {value!r:.100}.")
