"""Losses of the two papers on nnU-Net's targets: labels or regions, with or without an ignore label.

Both are Dice plus a loss per pixel. A direct evaluation would take most of the memory of a training step: logits,
softmax and their gradients at full resolution, for every class. Here the network returns its logits at 1/4 resolution,
and upsampling, non-linearity and sums are evaluated strip by strip, and again in the backward pass, so that at most one
strip is at full resolution at any time. Only sums per class are kept of a strip, which suffice for Dice and the mean.

Logits are (B, K, H / f, W / f) with a whole factor f (1: at full resolution). Label targets are (B, 1, H, W) class
indices; region targets are (B, K, H, W) of 0 and 1, followed by one more channel that marks ignored pixels where the
dataset has an ignore label: nnU-Net's own layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_hrmedseg.architectures.recompute import recomputed
from nnunet_hrmedseg.trainers.pseudo_dice import hard_counts

__all__ = ["DiceAndPixelLoss", "dice_and_cross_entropy", "dice_and_focal", "focal_loss"]

MAX_STRIPS = 16
SMALL_STRIP, LARGE_STRIP = 2**19, 2**21  # logits at full resolution; smaller strips cost more overhead than they save
VALIDATION_STRIP = 2**21  # logits of one image at full resolution; no backward pass, so many strips cost little
SMOOTH = 1e-5  # of Dice, nnU-Net's


def focal_loss(cross_entropy: Tensor, alpha: float = 0.8, gamma: float = 2.0) -> Tensor:
    """Focal loss per pixel from the cross entropy per pixel (Lin et al. 2017, Eq. 4, with p_t = exp(-cross entropy)).

    `alpha` scales all pixels equally, as in the code published with the HRMedSeg paper; it is not a class weight.
    """
    return alpha * (1 - torch.exp(-cross_entropy)) ** gamma * cross_entropy


class DiceAndPixelLoss(nn.Module):
    """weight_dice x (- soft Dice) + weight_pixel x mean over the pixels of a loss per pixel.

    The values are those of nnU-Net's MemoryEfficientSoftDiceLoss and of the mean, to rounding.

    Args:
        pixel_loss: the loss per pixel, given its cross entropy.
        regions: targets are regions (sigmoid per head) rather than labels (softmax over the heads). In Dice, the first
            head counts only then: for labels it is the background.
        ignore_label: value of ignored pixels in label targets; for regions, any value says that the last channel marks
            them.
        batch_dice: nnU-Net's: Dice over the batch instead of per image.
        ddp: gather the sums over processes, so that the mean of their losses is the loss of all their images.
        recompute: use many small strips, for a network that recomputes its layers. Otherwise strips are large: they
            do not raise the peak of memory then, and have less overhead.
    """

    def __init__(
        self,
        pixel_loss: Callable[[Tensor], Tensor],
        *,
        regions: bool,
        ignore_label: int | None = None,
        batch_dice: bool = True,
        ddp: bool = False,
        recompute: bool = True,
        weight_dice: float = 1.0,
        weight_pixel: float = 1.0,
    ):
        super().__init__()
        self.pixel_loss = pixel_loss
        self.regions, self.ignore_label, self.batch_dice, self.ddp = regions, ignore_label, batch_dice, ddp
        self.weight_dice, self.weight_pixel = weight_dice, weight_pixel
        self.logits_in_a_strip = SMALL_STRIP if recompute else LARGE_STRIP
        self.evaluate_strip: Callable[..., Tensor] = self.recomputed_sums_of_strip  # or compiled

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        factor = target.shape[2] // net_output.shape[2]
        sums: list[Tensor] = []
        for logits, trim, rows in strips(net_output, factor, self.strip_size(net_output, factor)):
            sums.append(self.evaluate_strip(logits, target[:, :, rows], factor, trim))
        return self.from_sums(torch.stack(sums).sum(0))

    def strip_size(self, net_output: Tensor, factor: int) -> int:
        """Return how many logits at full resolution a strip may have.

        On a CPU, caches make small strips fast. On a GPU every strip costs about a hundred launches: there are at most
        as many strips as classes, each of which takes a constant part of what the decoder takes for every image.
        """
        if net_output.device.type == "cpu":
            return self.logits_in_a_strip
        return max(self.logits_in_a_strip, net_output[:, 0].numel() * factor**2)

    def with_counts(self, net_output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, and true positives, false positives and false negatives of each head (3, K), for validation.

        Goes through the batch an image at a time and through an image strip by strip, so that memory does not grow with
        the number of images or heads. Gradients cannot be taken.
        """
        factor = target.shape[2] // net_output.shape[2]
        counts = torch.zeros(3, net_output.shape[1], dtype=torch.int64, device=net_output.device)
        sums: list[Tensor] = []
        with torch.no_grad():
            for image, truth in zip(net_output.split(1), target.split(1), strict=True):
                of_image: list[Tensor] = []
                for piece, trim, rows in strips(image, factor, VALIDATION_STRIP, most=image.shape[2]):
                    logits, truth_of_strip = upsampled(piece, factor, trim), truth[:, :, rows]
                    of_image.append(self.sums(logits, truth_of_strip))
                    counts += hard_counts(logits, truth_of_strip, self.regions, self.ignore_label)
                sums.append(torch.stack(of_image).sum(0))
            return self.from_sums(torch.cat(sums)), counts

    def from_sums(self, sums: Tensor) -> Tensor:
        """Return the loss from the sums over whole images (B, K, 5), as `sums` gives them for a strip.

        Processes may hold different numbers of images. The mean of their losses is the loss of all images as one batch.
        """
        of_dice, pixel_loss, pixels = sums[..., :3], sums[..., 3].sum(), sums[..., 4].detach().sum()
        if self.batch_dice:
            of_dice = of_dice.sum(0, keepdim=True)
        weight = 1.0  # of this process's images in a mean over images
        if self.ddp:
            images = pixels.new_full((), len(sums))
            shared = [torch.stack([pixels, images]), *([of_dice.flatten()] if self.batch_dice else [])]
            gathered = AllGatherGrad.apply(torch.cat(shared))  # contiguous: NCCL takes nothing else
            pixels, images_of_all = gathered[:, :2].detach().mean(0)
            if self.batch_dice:
                of_dice = gathered[:, 2:].sum(0).view_as(of_dice)
            else:
                weight = images / images_of_all
        mean = pixel_loss / pixels.clamp_min(1)
        return self.weight_pixel * mean - self.weight_dice * weight * self.dice(of_dice)

    def recomputed_sums_of_strip(self, *arguments) -> Tensor:
        """Evaluate `sums_of_strip` again in the backward pass, keeping only its arguments.

        The recomputation is part of the compiled function. Strips differ in height, and a compiled function that is
        recomputed from outside may use another of its graphs the second time, which keeps other tensors: an error.
        """
        return recomputed(self.sums_of_strip, *arguments)

    def sums_of_strip(self, logits: Tensor, target: Tensor, factor: int, trim: tuple[int, int]) -> Tensor:
        """Return the sums over a strip: prediction in truth, prediction, truth, pixel loss, valid pixels: (B, K, 5).

        Args:
            logits: (B, K, r, W / f); the first and last `trim` rows of the upsampled map belong to neighboring strips.
            target: (B, 1 or K (+ 1), rows, W).
            factor: upsampling factor f.
            trim: number of rows to remove at top and bottom.
        """
        return self.sums(upsampled(logits, factor, trim), target)

    def sums(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the sums of `sums_of_strip` from logits at full resolution: (B, K, rows, W) -> (B, K, 5)."""
        valid = None
        if self.regions:
            if self.ignore_label is not None:
                valid = target[:, -1:] == 0
                target = target[:, :-1]
            truth = target.to(logits.dtype)
            cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
            probability = logits.sigmoid()
        else:
            if self.ignore_label is not None:
                valid = target != self.ignore_label
                target = torch.where(valid, target, 0)
            index = target.long()
            log_probability = logits.log_softmax(1)
            cross_entropy = -log_probability.gather(1, index)
            probability = log_probability.exp()
            truth = torch.zeros_like(logits).scatter_(1, index, 1.0)

        loss = self.pixel_loss(cross_entropy)
        if valid is not None:
            probability, truth, loss = probability * valid, truth * valid, loss * valid
        sums = torch.stack([(probability * truth).sum((2, 3)), probability.sum((2, 3)), truth.sum((2, 3))], -1)
        heads = loss.shape[1]  # 1 for labels
        pixels = (
            loss.new_full(loss.shape[:2], loss[0, 0].numel()) if valid is None else valid.sum((2, 3)).expand(-1, heads)
        )
        of_pixels = torch.stack([loss.sum((2, 3)), pixels.to(loss.dtype)], -1)
        return torch.cat([sums, F.pad(of_pixels, (0, 0, 0, sums.shape[1] - heads))], -1)

    def dice(self, sums: Tensor) -> Tensor:
        """Return the mean soft Dice over classes and images, as nnU-Net's MemoryEfficientSoftDiceLoss, from (B, K, 3).

        The sums are of prediction in truth, prediction and truth.
        """
        intersection, predicted, true = (sums if self.regions else sums[:, 1:]).unbind(-1)
        return ((2 * intersection + SMOOTH) / (predicted + true + SMOOTH).clamp_min(1e-8)).mean()


def upsampled(logits: Tensor, factor: int, trim: tuple[int, int]) -> Tensor:
    """Return a strip's logits at full resolution in float32, without the rows of its neighbors."""
    logits = logits.float()
    if factor > 1:
        logits = F.interpolate(logits, scale_factor=factor, mode="bilinear", align_corners=False)
        logits = logits[:, :, trim[0] : logits.shape[2] - trim[1]]
    return logits


def strips(
    logits: Tensor, factor: int, logits_in_a_strip: int, most: int = MAX_STRIPS
) -> list[tuple[Tensor, tuple[int, int], slice]]:
    """Return the logits in up to `most` strips of rows, as pieces that can be upsampled each on its own.

    Each is a tuple: logits with one row of each neighbor, of which bilinear upsampling needs the values; the rows at
    top and bottom of the upsampled piece that belong to the neighbors; the strip's rows of the target.
    """
    number = min(most, -(-logits.numel() * factor**2 // logits_in_a_strip))
    rows = -(-logits.shape[2] // number)
    pieces = logits.split(rows, dim=2)
    halo = factor > 1
    result = []
    for index, piece in enumerate(pieces):
        above = [pieces[index - 1][:, :, -1:]] if halo and index else []
        below = [pieces[index + 1][:, :, :1]] if halo and index + 1 < len(pieces) else []
        top = index * rows * factor
        height = piece.shape[2] * factor
        padded = torch.cat([*above, piece, *below], 2) if above or below else piece
        result.append((padded, (len(above) * factor, len(below) * factor), slice(top, top + height)))
    return result


def dice_and_focal(*, alpha: float = 0.8, gamma: float = 2.0, **options) -> DiceAndPixelLoss:
    """HRMedSeg's loss (v1, implementation details): Dice and focal, weighted 0.8 and 0.2 as in the published code."""
    weights = {"weight_dice": 0.8, "weight_pixel": 0.2}
    return DiceAndPixelLoss(partial(focal_loss, alpha=alpha, gamma=gamma), **{**weights, **options})


def dice_and_cross_entropy(**options) -> DiceAndPixelLoss:
    """HER-Seg's loss (v2, Eq. 9): Dice and cross entropy, both weighted 1."""
    return DiceAndPixelLoss(nn.Identity(), **options)
