"""HRMedSeg and HER-Seg, assembled (arXiv 2504.06205, first and second version)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_hrmedseg.architectures.cpu_precision import predicts_in_bfloat16
from nnunet_hrmedseg.architectures.ecm_decoder import ECMDecoder, refuse_deep_supervision
from nnunet_hrmedseg.architectures.lgvit import LGViT
from nnunet_hrmedseg.architectures.neck import Neck

__all__ = ["HERSeg", "HRMedSeg"]


class HRMedSeg(nn.Module):
    """HRMedSeg (arXiv 2504.06205v1): LGViT, neck and ECM-Decoder, from image to logits.

    The final non-linearity of Eq. 8 is left to loss and inference. Logits are float32 under any autocast: the usual
    losses widen them anyway, and half precision would add a copy instead of saving one, and round what becomes a label.

    Args:
        input_channels: channels of the image.
        num_classes: K, the number of output channels.
        embed_dim, depth, num_heads, channel_interactive_layers, inter_gate, exter_gate, rotary, drop_path: see LGViT.
        expansion: hidden width of the encoder's layers, in units of embed_dim.
        neck: order of the neck's two convolutions, "1x1_3x3" or "3x3_1x1".
        decoder_dim: D, width between neck and decoder.
        decoder_depth, decoder_heads, decoder_mlp_dim: of the two-way transformer.
        multiscale_pooling, pool_sizes, class_mlp, upscaling: see ECMDecoder.
        recompute: in training, keep the input of each layer alone and evaluate the layer again in the backward pass:
            an eighth of the memory for more time (docs/explanation/memory.md).
        deep_supervision: nnU-Net passes it to every network; there is none here, so it must be False.

    Raises:
        ValueError: for arguments from which no network can be built, or if deep supervision is asked for.
    """

    # Where pretraining frameworks (nnssl, dynamic-network-architectures) find the parts that they exchange.
    key_to_encoder = "encoder"
    key_to_stem = "encoder.patch_embedding"
    keys_to_in_proj = ("encoder.patch_embedding.proj",)
    key_to_lpe = None

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        embed_dim: int = 96,
        depth: int | Sequence[int] = 10,
        num_heads: Sequence[int] = (6, 12, 24),
        channel_interactive_layers: int = 2,
        expansion: int = 2,
        inter_gate: bool = True,
        exter_gate: bool = True,
        rotary: bool = True,
        drop_path: float = 0.1,
        neck: str = "1x1_3x3",
        decoder_dim: int = 256,
        decoder_depth: int = 2,
        decoder_heads: int = 8,
        decoder_mlp_dim: int = 256,
        multiscale_pooling: bool = True,
        pool_sizes: Sequence[int] = (5, 9, 13),
        class_mlp: str = "shared",
        upscaling: str = "two_2x2",
        recompute: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        refuse_deep_supervision(deep_supervision)
        self.encoder = LGViT(
            input_channels,
            embed_dim,
            depth,
            num_heads=num_heads,
            channel_interactive_layers=channel_interactive_layers,
            expansion=expansion,
            inter_gate=inter_gate,
            exter_gate=exter_gate,
            rotary=rotary,
            drop_path=drop_path,
            recompute=recompute,
        )
        self.neck = Neck(embed_dim, decoder_dim, neck, recompute=recompute)
        self.decoder = ECMDecoder(
            num_classes,
            decoder_dim,
            depth=decoder_depth,
            num_heads=decoder_heads,
            mlp_dim=decoder_mlp_dim,
            multiscale_pooling=multiscale_pooling,
            pool_sizes=pool_sizes,
            class_mlp=class_mlp,
            upscaling=upscaling,
            recompute=recompute,
        )
        self.upsample_in_training = True
        self.cpu_bfloat16 = predicts_in_bfloat16()

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, input_channels, H, W) -> logits (B, num_classes, H, W), H and W multiples of 16.

        In training mode with ``upsample_in_training`` set to False: logits (B, num_classes, H/4, W/4), for a loss that
        upsamples them itself, strip by strip.

        Raises:
            ValueError: if the image has other channels than the network, or another size.
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


class HERSeg(HRMedSeg):
    """HER-Seg (arXiv 2504.06205v2): HRMedSeg with another order of the neck and one 4 x 4 transposed convolution.

    Built as the text has it: neck 3 x 3 (C -> D) then 1 x 1 (D -> D); F_trans one transposed convolution D -> D/8 of
    kernel and stride 4, followed by GELU as the last one of HRMedSeg; one class MLP for all queries. The softmax of its
    Eq. 8 is left to nnU-Net. All arguments of HRMedSeg can be given.

    With 3 input channels and 2 classes it has 2,969,488 parameters (encoder 957,648, neck 287,744, decoder 1,724,096)
    and 6.62 G multiply-accumulates at 1024 x 1024. The published 3.67 M cannot be reached from the text. It is the
    count of HRMedSeg's layers with a fourth class MLP, HRMedSeg(3, 4, class_mlp="per_class"): 3,659,952, and 3,666,428
    with one token more and the unused prompt encoder, as in the public implementation. The other published figures,
    9.39 G and a backbone 405.8 times smaller than that of SAM-H (1.57 M), are those of HRMedSeg, too.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        neck: str = "3x3_1x1",
        upscaling: str = "one_4x4",
        **arguments: Any,
    ) -> None:
        super().__init__(input_channels, num_classes, neck=neck, upscaling=upscaling, **arguments)
