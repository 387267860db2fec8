"""Losses of the two papers on nnU-Net's targets: labels or regions, with or without an ignore label.

Logits are (B, K, H, W). Label targets are (B, 1, H, W) class indices; region targets are (B, K, H, W) of 0 and 1,
followed by one more channel that marks ignored pixels where the data set has an ignore label: nnU-Net's own layouts.
"""

from __future__ import annotations

import torch
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.helpers import softmax_helper_dim1
from torch import nn
from torch.nn import functional as F

__all__ = ["DiceAndFocalLoss", "focal_loss"]


def focal_loss(cross_entropy: torch.Tensor, alpha: float = 0.8, gamma: float = 2.0) -> torch.Tensor:
    """Focal loss per pixel from the cross entropy per pixel (Lin et al. 2017, Eq. 4, with p_t = exp(-cross entropy)).

    `alpha` scales every pixel alike, as in the code published with the HRMedSeg paper; it is no class weight.
    """
    return alpha * (1 - torch.exp(-cross_entropy)) ** gamma * cross_entropy


class DiceAndFocalLoss(nn.Module):
    """HRMedSeg's loss (v1, implementation details): Dice and focal, weighted 0.8 and 0.2 as in the published code.

    Args:
        regions: targets are regions (sigmoid per head) rather than labels (softmax over the heads).
        ignore_label: value of ignored pixels in label targets; for regions, any value says that the last channel marks
            them.
        batch_dice: nnU-Net's: Dice over the batch instead of per image.
        ddp: gather the batch Dice over processes.
    """

    def __init__(
        self,
        *,
        regions: bool,
        ignore_label: int | None = None,
        batch_dice: bool = True,
        ddp: bool = False,
        weight_dice: float = 0.8,
        weight_focal: float = 0.2,
        alpha: float = 0.8,
        gamma: float = 2.0,
    ):
        super().__init__()
        self.regions, self.ignore_label = regions, ignore_label
        self.weight_dice, self.weight_focal, self.alpha, self.gamma = weight_dice, weight_focal, alpha, gamma
        # `dc` is nnU-Net's name for it; background counts only where it is a region of its own
        self.dc = MemoryEfficientSoftDiceLoss(
            apply_nonlin=torch.sigmoid if regions else softmax_helper_dim1,
            batch_dice=batch_dice,
            do_bg=regions,
            smooth=1e-5,
            ddp=ddp,
        )

    def forward(self, net_output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        valid = None
        if self.regions:
            if self.ignore_label is not None:
                valid = target[:, -1:] == 0
                target = target[:, :-1]
            cross_entropy = F.binary_cross_entropy_with_logits(net_output.float(), target.float(), reduction="none")
        else:
            if self.ignore_label is not None:
                valid = target != self.ignore_label
                target = torch.where(valid, target, 0)
            cross_entropy = F.cross_entropy(net_output.float(), target[:, 0].long(), reduction="none")[:, None]

        focal = focal_loss(cross_entropy, self.alpha, self.gamma)
        if valid is None:
            focal = focal.mean()
        else:
            focal = (focal * valid).sum() / (valid.sum() * focal.shape[1]).clamp_min(1)
        return self.weight_dice * self.dc(net_output, target, loss_mask=valid) + self.weight_focal * focal
