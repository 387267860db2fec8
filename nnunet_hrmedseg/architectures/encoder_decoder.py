"""A 2D segmentation network composed of encoder, neck and decoder; each part can be exchanged."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_hrmedseg.architectures.ecm_decoder import refuse_deep_supervision
from nnunet_hrmedseg.architectures.recompute import Recomputable

__all__ = ["EncoderDecoder"]


class EncoderDecoder(Recomputable):
    """Encoder, neck and decoder in sequence, from image to logits.

    Logits are float32 under any autocast: the usual losses convert them anyway, and half precision would add a copy
    instead of saving one, and round the values that decide between labels.

    Args:
        encoder: image (B, input_channels, H, W) -> feature map (B, C, H/16, W/16).
        neck: feature map -> embedding (B, D, H/16, W/16), such as `Neck(C, D)`.
        decoder: embedding -> logits (B, num_classes, H/4, W/4), such as `ECMDecoder(num_classes, D)`. It has an
            attribute `deep_supervision`, which nnU-Net sets. nnU-Net does not load the parameters in `seg_layers` from
            networks that were trained with other classes.
        recompute: activation checkpointing, see `set_activation_checkpointing`. It affects the parts that derive from
            `Recomputable`.
        deep_supervision: nnU-Net passes it to every network; there is none here, so it must be False.

    Attributes:
        upsample_in_training: return logits at full resolution in training mode. The losses of this package upsample
            them strip by strip, and their trainers set it to False.
        cpu_bfloat16: predict in bfloat16 on a CPU; float32 otherwise. Trainers set it for processors that support it.

    Raises:
        ValueError: deep supervision is requested.
    """

    def __init__(
        self,
        encoder: nn.Module,
        neck: nn.Module,
        decoder: nn.Module,
        *,
        recompute: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        refuse_deep_supervision(deep_supervision)
        self.encoder = encoder
        self.neck = neck
        self.decoder = decoder
        self.upsample_in_training = True
        self.cpu_bfloat16 = False
        self.set_activation_checkpointing(recompute)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, input_channels, H, W) -> logits (B, num_classes, H, W), H and W multiples of 16.

        In training mode with `upsample_in_training` set to False: logits (B, num_classes, H/4, W/4), for a loss that
        upsamples them itself, strip by strip.

        Raises:
            ValueError: the image has another number of channels than the network, or its size is not a multiple of 16.
        """
        logits = self.quarter_logits(image)
        if self.training and not self.upsample_in_training:
            return logits
        return F.interpolate(logits, size=image.shape[2:], mode="bilinear", align_corners=False)

    def quarter_logits(self, image: Tensor) -> Tensor:
        """Image (B, input_channels, H, W) -> logits (B, num_classes, H/4, W/4), before `forward` upsamples them."""
        bfloat16 = self.cpu_bfloat16 and image.device.type == "cpu" and not (self.training or torch.is_grad_enabled())
        with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
            return self.decoder(self.neck(self.encoder(image)))
