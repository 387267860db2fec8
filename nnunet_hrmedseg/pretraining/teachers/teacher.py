"""What a teacher is: a large network that turns an image into the embedding that the student learns to make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

__all__ = ["Teacher"]


class Teacher(ABC):
    """A frozen network and its image embedding. Another teacher is another file with one subclass of this.

    A subclass sets `channels` and `read_by_decoder` when it has loaded its file, and moves to the GPU by `to`.

    Attributes:
        kind: the word by which the command line names this kind of teacher.
        looks_like: what the user gives for it, in words.
        channels: width of the embedding.
        read_by_decoder: whether a decoder (SAM's prompt-driven one) reads this embedding. Then the student must give
            exactly these numbers, and its width must be `channels`. If not, the student learns the embedding with every
            channel standardised, through a linear map that is thrown away afterwards.
    """

    kind: ClassVar[str]
    looks_like: ClassVar[str]
    channels: int
    read_by_decoder: bool = False

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path) -> bool:
        """Whether the file or folder looks like one of this kind. Reads no more than names and small JSON files."""

    @classmethod
    @abstractmethod
    def load(cls, path: Path, *, canvas: tuple[int, int], **options: Any) -> Teacher:
        """The teacher from its file or folder, on the CPU, in evaluation mode.

        Args:
            path: what the user gave.
            canvas: height and width in pixels of the images that it will see.
            options: what only this kind of teacher can be told.

        Raises:
            HRMedSegError: missing, of another kind, damaged, or not made for this canvas.
        """

    @abstractmethod
    def to(self, device: torch.device) -> Teacher:
        """Move the network; returns self."""

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """RGB images (B, 3, H, W), float32 in 0..1, of the canvas' size -> embedding (B, channels, h, w), float32.

        The teacher normalises the images itself. h and w are about H/16 and W/16: where they differ, the embedding is
        resized. Runs without gradients, under whatever autocast the caller has set.
        """

    def flipped(self, embedding: Tensor) -> Tensor:
        """The embedding (..., channels, h, w) of the image turned left to right, as far as it follows from this one."""
        return embedding.flip(-1)

    @abstractmethod
    def card(self) -> dict[str, Any]:
        """What the encoder's card says about the teacher, in JSON values: at least name, file, sha256 and licence
        ("unknown" where the file does not say), parameters, embedding."""
