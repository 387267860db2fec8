"""What a teacher is: a large network that turns an image into the embedding that the student learns to make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from nnunet_hrmedseg.architectures.fine_levels import pack, packed_channels, unpack
from nnunet_hrmedseg.errors import PlanError

__all__ = ["Teacher"]


class Teacher(ABC):
    """A frozen network and its image embedding. Another teacher is another file with one subclass of this.

    A subclass sets `channels` and `feeds_decoder` when it has loaded its file, and moves to the GPU by `to`.

    Attributes:
        kind: the word by which the command line names this kind of teacher.
        description: what the user gives for it.
        channels: width of the embedding.
        feeds_decoder: whether a decoder (SAM's prompt-driven one) reads this embedding. Then the student must give
            exactly these numbers, and its width must be `channels`. If not, the student learns the embedding with every
            channel standardized, through a linear map that is discarded afterwards.
        fit: how its own predictor puts images on the canvas, see `io.fitting`.
        decoder_id: of that decoder; the same in all files that hold the same one.
        note: what the user should know about how its file was read; empty if nothing.
        fine_channels: widths of the levels at 1/4 and 1/8 that the decoder reads as well, once `enable_multiscale` was
            called.
    """

    kind: ClassVar[str]
    description: ClassVar[str]
    fit: ClassVar[str] = "stretch"
    channels: int
    feeds_decoder: bool = False
    decoder_id: str | None = None
    note: str = ""
    fine_channels: tuple[int, ...] = ()

    @classmethod
    @abstractmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether the file or folder looks like one of this kind. Reads no more than names and small JSON files."""

    @classmethod
    @abstractmethod
    def load(cls, path: Path, *, canvas: tuple[int, int], **options: Any) -> Teacher:
        """Load the teacher from its file or folder, on the CPU, in evaluation mode.

        Args:
            path: what the user gave.
            canvas: height and width in pixels of the images that it will see.
            options: what only this kind of teacher can be told.

        Raises:
            PlanError: Missing, of another kind, damaged, or not made for this canvas.
        """

    @abstractmethod
    def to(self, device: torch.device) -> Teacher:
        """Move the network; returns self."""

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """RGB images (B, 3, H, W), float32 in 0..1, of the canvas' size -> embedding (B, channels, h, w), float32.

        The teacher normalizes the images itself. h and w are about H/16 and W/16: where they differ, the embedding is
        resized. Runs without gradients, under whatever autocast the caller has set. After `enable_multiscale` the
        embedding is packed with the finer levels: (B, packed_channels, h, w).
        """

    def enable_multiscale(self) -> None:
        """From now on `embed` gives everything that the prompt-driven decoder reads.

        Raises:
            PlanError: There is no such decoder.
        """
        if not self.feeds_decoder:
            raise PlanError(
                f"Promptable networks take the decoder of SAM or SAM2, and so an encoder that was made from one; a "
                f"teacher of kind {self.kind} has none. Leave --promptable out, or give a SAM or SAM2."
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Of all levels that `embed` gives, from the finest to the embedding."""
        return *self.fine_channels, self.channels

    @property
    def packed_channels(self) -> int:
        return sum(packed_channels(self.widths))

    def flipped(self, embedding: Tensor) -> Tensor:
        """Return an approximation of the embedding (B, channels, h, w) of the mirrored image from that of the image."""
        if not self.fine_channels:
            return embedding.flip(-1)
        return pack([level.flip(-1) for level in unpack(embedding, self.widths)])

    @abstractmethod
    def card(self) -> dict[str, Any]:
        """Return the description of the teacher for the encoder's card, as JSON values.

        It has at least name, file, sha256, license ("unknown" if the file does not contain it), parameters, embedding.
        """
