"""HRMedSeg and HER-Seg (arXiv 2504.06205, first and second version)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnunet_hrmedseg.architectures.ecm_decoder import ECMDecoder
from nnunet_hrmedseg.architectures.encoder_decoder import EncoderDecoder
from nnunet_hrmedseg.architectures.lgvit import LGViT
from nnunet_hrmedseg.architectures.neck import Neck

__all__ = ["HERSeg", "HRMedSeg"]


class HRMedSeg(EncoderDecoder):
    """HRMedSeg (arXiv 2504.06205v1): LGViT, neck and ECM-Decoder, from image to logits.

    The final non-linearity of Eq. 8 is left to loss and inference.

    Args:
        input_channels: channels of the image.
        num_classes: K, the number of output channels.
        embed_dim, depth, num_heads, channel_interactive_layers, inter_gate, exter_gate, rotary, drop_path: see LGViT.
        expansion: hidden width of the encoder's layers, in units of embed_dim.
        neck: order of the neck's two convolutions, "1x1_3x3" or "3x3_1x1".
        decoder_dim: D, width between neck and decoder.
        decoder_depth, decoder_heads, decoder_mlp_dim: depth, heads and hidden width of the two-way transformer.
        multiscale_pooling, pool_sizes, class_mlp, upscaling: see ECMDecoder.
        recompute: activation checkpointing, see `set_activation_checkpointing`. It reduces the memory of training to a
            quarter and makes each step about a third longer.
        deep_supervision: nnU-Net passes it to every network; there is none here, so it must be False.

    Raises:
        ValueError: arguments from which no network can be built, or deep supervision is requested.
    """

    encoder: LGViT
    neck: Neck
    decoder: ECMDecoder

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
        encoder = LGViT(
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
        )
        neck_module = Neck(embed_dim, decoder_dim, neck)
        decoder = ECMDecoder(
            num_classes,
            decoder_dim,
            depth=decoder_depth,
            num_heads=decoder_heads,
            mlp_dim=decoder_mlp_dim,
            multiscale_pooling=multiscale_pooling,
            pool_sizes=pool_sizes,
            class_mlp=class_mlp,
            upscaling=upscaling,
        )
        super().__init__(encoder, neck_module, decoder, recompute=recompute, deep_supervision=deep_supervision)


class HERSeg(HRMedSeg):
    """HER-Seg (arXiv 2504.06205v2): HRMedSeg with another order of the neck and one 4 x 4 transposed convolution.

    It follows the text: neck 3 x 3 (C -> D) then 1 x 1 (D -> D); F_trans one transposed convolution D -> D/8 with
    kernel and stride 4, followed by GELU like the last one of HRMedSeg; one class MLP for all queries. The softmax of
    its Eq. 8 is left to nnU-Net. It takes all arguments of HRMedSeg.

    With 3 input channels and 2 classes it has 2,969,488 parameters (encoder 957,648, neck 287,744, decoder 1,724,096)
    and 6.62 G multiply-accumulates at 1024 x 1024. The published 3.67 M cannot be reached from the text. It is the
    count of HRMedSeg's layers with a fourth class MLP, HRMedSeg(3, 4, class_mlp="per_class"): 3,659,952, and 3,666,428
    with one more token and the unused prompt encoder, as in the public implementation. The other published figures,
    9.39 G and a backbone 405.8 times smaller than that of SAM-H (1.57 M), are also those of HRMedSeg.
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
