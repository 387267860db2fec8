"""HRMedSegSAM and HRMedSegSAM2 (v1, Table 4; HER-SAM and HER-SAM2 in v2): the small encoder replaces that of SAM.

Encoder and neck are those of an encoder file that `hrmedseg encoder distill` made from that SAM, untouched; prompt
encoder and mask decoder are SAM's own.
"""

from __future__ import annotations

import os
import sys
from typing import ClassVar

import torch
from torch import Tensor, nn

from nnunet_hrmedseg.architectures.fine_levels import unpack
from nnunet_hrmedseg.errors import CheckpointError
from nnunet_hrmedseg.prompting.checkpoints import DecoderFile, read_decoder
from nnunet_hrmedseg.prompting.prompt_decoder import PromptDecoder
from nnunet_hrmedseg.teachers import Teacher, load_teacher
from nnunet_hrmedseg.teachers.loading import GRID
from nnunet_hrmedseg.weights.encoder_file import EncoderFile
from nnunet_hrmedseg.weights.load import load_encoder
from nnunet_hrmedseg.weights.student import Normalize, Student

__all__ = ["HRMedSegSAM", "HRMedSegSAM2", "PromptableNetwork", "load_promptable", "load_whole_sam"]

HOW_TO_DISTIL = (
    "Make one with: hrmedseg encoder distill --promptable --teacher SAM --images FOLDER -o OUTPUT, where SAM is the "
    "file or folder that is given as --sam here."
)
LARGEST_CANVAS = 2**14  # that is made because a card says so


class PromptableNetwork(nn.Module):
    """An image encoder and SAM's decoder; frozen, in evaluation mode.

    Args:
        image_encoder: images (B, 3, S, S), RGB in 0..1 -> list of levels, from the finest to the embedding.
        decoder: reads them.
        fit: how the image encoder expects images on the canvas, a word of `io.fitting`.

    Attributes:
        canvas: S, in pixels.
    """

    def __init__(self, image_encoder: nn.Module, decoder: PromptDecoder, fit: str) -> None:
        super().__init__()
        self.image_encoder, self.decoder, self.fit = image_encoder, decoder, fit
        self.canvas = decoder.canvas
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def embed(self, images: Tensor) -> list[Tensor]:
        """Return the levels of images (B, 3, S, S), once for all prompts."""
        return self.image_encoder(images)

    @torch.no_grad()
    def decode(self, levels: list[Tensor], **prompts) -> tuple[Tensor, Tensor]:
        """Return logits and scores of prompts on one image, see `PromptDecoder.forward`."""
        return self.decoder(levels, **prompts)


class HRMedSegSAM(PromptableNetwork):
    """LGViT and neck, distilled from SAM's image encoder, with SAM's decoder (1.57 M parameters before the prompt).

    Args:
        encoder: Encoder file of `distill` with a SAM as the teacher.
        sam: The SAM: Meta's .pth, MobileSAM's, or a folder in the format of transformers.

    Raises:
        CheckpointError: Files are missing, damaged, of another kind or width, or not made for each other.
        SetupError: The package transformers is missing.

    Examples:
        >>> import torch
        >>> from nnunet_hrmedseg import HRMedSegSAM
        >>> network = HRMedSegSAM("encoder.safetensors", "sam.pth")
        >>> levels = network.embed(torch.rand(1, 3, network.canvas, network.canvas))
        >>> logits, scores = network.decode(levels, boxes=torch.tensor([[5.0, 5.0, 40.0, 40.0]]), multimask=False)
        >>> scores.shape
        torch.Size([1, 1])
    """

    kind: ClassVar[str] = "sam"

    def __init__(self, encoder: str | os.PathLike | None, sam: str | os.PathLike | None) -> None:
        file = read_decoder(sam)
        if file.kind != self.kind:
            raise CheckpointError(f"{file.path} is a {file.kind}, and {type(self).__name__} takes a {self.kind}.")
        distilled = _read_distilled(encoder, self.kind)
        recipe = distilled.card.get("recipe") or {}
        canvas, fit = recipe.get("canvas") or [file.canvas, file.canvas], recipe.get("fit", "stretch")
        if fit not in ("stretch", "pad") or not _is_canvas(canvas):
            raise CheckpointError(
                f"The card of {distilled.path} says a canvas of {canvas!r:.100} and a fit of {fit!r:.100}: that is not "
                f"what `hrmedseg encoder distill` writes. Copy both files again, or make the encoder again."
            )
        height, width = canvas
        if height != width:
            raise CheckpointError(
                f"{distilled.path} was distilled on a canvas of {height} x {width} pixels, and SAM's decoder reads "
                f"square ones. {HOW_TO_DISTIL}"
            )
        decoder = PromptDecoder(file, height)
        _check_fit(distilled, decoder)
        _report(file)
        super().__init__(StudentEncoder(distilled), decoder, fit)
        self.encoder_file = distilled


class HRMedSegSAM2(HRMedSegSAM):
    """LGViT and neck, distilled from the image encoder of SAM2 or SAM2.1, with the decoder of that SAM2.

    The decoder also reads levels at 1/4 and 1/8 of the image: the encoder file must have the layers that compute them,
    as `distill` with `promptable` writes it.

    Args:
        encoder: Encoder file of `distill` with a SAM2 as the teacher.
        sam: Folder of the SAM2 in the format of transformers.

    Raises:
        CheckpointError: Files are missing, damaged, of another kind or width, or not made for each other.
        SetupError: The package transformers is missing.

    Examples:
        >>> import torch
        >>> from nnunet_hrmedseg import HRMedSegSAM2
        >>> network = HRMedSegSAM2("encoder.safetensors", "sam2")
        >>> [tuple(level.shape[2:]) for level in network.embed(torch.rand(1, 3, network.canvas, network.canvas))]
        [(16, 16), (8, 8), (4, 4)]
    """

    kind = "sam2"


class StudentEncoder(nn.Module):
    """Normalization, encoder, neck and finer levels of an encoder file: (B, 3, S, S) in 0..1 -> list of levels."""

    def __init__(self, file: EncoderFile) -> None:
        super().__init__()
        normalization = dict(file.normalization)
        self.normalize = Normalize(normalization["scheme"], normalization["mean"], normalization["std"])
        try:
            # without memory first: a card may say any width
            with torch.device("meta"):
                expected = Student(file.architecture).state_dict()
            if {n: v.shape for n, v in expected.items()} != {n: v.shape for n, v in file.state.items()}:
                raise RuntimeError("names or shapes of its weights are others")
            self.student = Student(file.architecture)
            self.student.load_state_dict(file.state)
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())[:500]
            raise CheckpointError(f"{file.path} does not contain what its card describes: {reason}") from error

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.student.levels(self.normalize(images))


class TeacherEncoder(nn.Module):
    """A teacher's own image encoder: (B, 3, S, S) in 0..1 -> list of levels."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        teacher.enable_multiscale()
        self.teacher = teacher
        self.network = teacher.network  # type: ignore[attr-defined]  # so that it moves with this module

    def forward(self, images: Tensor) -> list[Tensor]:
        return unpack(self.teacher.embed(images), self.teacher.widths)


def load_promptable(encoder: str | os.PathLike | None, sam: str | os.PathLike | None) -> HRMedSegSAM:
    """Load HRMedSegSAM or HRMedSegSAM2, depending on the kind of `sam`, on the CPU.

    Raises:
        CheckpointError: See HRMedSegSAM.
    """
    return {"sam": HRMedSegSAM, "sam2": HRMedSegSAM2}[read_decoder(sam).kind](encoder, sam)


def load_whole_sam(path: str | os.PathLike) -> PromptableNetwork:
    """Load SAM or SAM2 with its own image encoder, on the canvas that it was trained on: the upper bound of a student.

    Raises:
        CheckpointError: No SAM, or one with an image encoder that is not known (MobileSAM's).
    """
    file = read_decoder(path)
    if file.kind == "sam" and file.path.is_dir():
        raise CheckpointError(f"The image encoder of a SAM is read from Meta's .pth, not from a folder: {file.path}.")
    teacher = load_teacher(path, kind=file.kind, canvas=(file.canvas, file.canvas))
    _report(file)
    return PromptableNetwork(TeacherEncoder(teacher), PromptDecoder(file), teacher.fit)


def _report(file: DecoderFile) -> None:
    if file.note:
        print(f"Note: {file.note}", file=sys.stderr)


def _read_distilled(path: str | os.PathLike | None, kind: str) -> EncoderFile:
    if path is None:
        raise CheckpointError(
            f"Give --encoder the file of an encoder that was distilled from this SAM; the bundled encoder was not made "
            f"from a SAM, and the decoder cannot read its embedding. {HOW_TO_DISTIL}"
        )
    file = load_encoder(path)
    teacher = file.card.get("teacher") or {}
    if teacher.get("kind") != kind:
        made_from = f"distilled from {teacher.get('name', 'another teacher')}" if teacher else "not distilled"
        raise CheckpointError(
            f"The encoder {file.path} ({file.card.get('name', 'without a name')}) was {made_from}: the decoder of "
            f"{kind.upper()} cannot read its embedding. {HOW_TO_DISTIL}"
        )
    return file


def _is_canvas(canvas: object) -> bool:
    if not isinstance(canvas, list | tuple) or len(canvas) != 2:
        return False
    return all(type(side) is int and GRID <= side <= LARGEST_CANVAS and side % GRID == 0 for side in canvas)


def _check_fit(file: EncoderFile, decoder: PromptDecoder) -> None:
    width = file.architecture["decoder_dim"]
    if width != decoder.widths[-1]:
        raise CheckpointError(
            f"The encoder {file.path} gives an embedding of {width} channels, and the decoder of {decoder.path} reads "
            f"{decoder.widths[-1]}: they are not of the same SAM. {HOW_TO_DISTIL}"
        )
    fine = tuple(file.architecture.get("fine_channels") or ())
    if decoder.kind == "sam2" and fine != decoder.widths[:-1]:
        has = f"levels of {fine} channels" if fine else "none"
        raise CheckpointError(
            f"SAM2's decoder reads levels at 1/4 and 1/8 of the image too, of {decoder.widths[:-1]} channels, and the "
            f"encoder {file.path} has {has}: it was distilled without --promptable. {HOW_TO_DISTIL} It can start from "
            f"this encoder: --start {file.path} --normalization "
            f"{'imagenet' if file.normalization['scheme'] == 'mean_std' else 'zscore'}."
        )
    made_for = file.card.get("decoder_id")
    if made_for is not None and made_for != decoder.decoder_id:
        print(
            f"Note: {decoder.path} holds another decoder than the SAM that {file.path} was distilled from "
            f"({file.card['teacher'].get('name')}). Masks will be poor unless it was made for the same image encoder.",
            file=sys.stderr,
        )
