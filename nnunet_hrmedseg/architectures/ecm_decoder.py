"""ECM-Decoder, the efficient cross-multiscale decoder of HRMedSeg (arXiv 2504.06205v1, section 3.3).

The second version of the paper (HER-Seg) calls it ME-Decoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_hrmedseg.architectures.layers import LayerNorm2d, Mlp, at_least_float32, to_map, to_tokens, without_autocast
from nnunet_hrmedseg.architectures.multiscale_pooling import MultiscalePooling
from nnunet_hrmedseg.architectures.recompute import Recomputable, recomputed
from nnunet_hrmedseg.architectures.two_way_transformer import RandomFourierEncoding, TwoWayTransformer

__all__ = ["ECMDecoder"]


class ECMDecoder(Recomputable):
    """Mask decoder with one learned query per class (Eq. 6-8).

    Everything whose shape depends on the number of classes lives in ``seg_layers``, and nothing else does: nnU-Net
    leaves parameters of that name alone when it loads weights pretrained with other classes.

    Args:
        num_classes: K, the number of output channels.
        dim: width of image embedding and class queries.
        depth: number of layers of the two-way transformer.
        num_heads: attention heads of the two-way transformer.
        mlp_dim: hidden width of the MLPs of the two-way transformer.
        multiscale_pooling: fuse the image embedding with its average pools (delta of Eq. 6-7).
        pool_sizes: sizes of these pools.
        class_mlp: "shared", one F_MLP for all classes, as Eq. 8 has it; or "per_class", one for each.
        upscaling: F_trans, "two_2x2" (first version of the paper) or "one_4x4" (second version).

    Raises:
        ValueError: an option that does not exist, or a width that cannot be built.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int = 256,
        *,
        depth: int = 2,
        num_heads: int = 8,
        mlp_dim: int = 256,
        multiscale_pooling: bool = True,
        pool_sizes: Sequence[int] = (5, 9, 13),
        class_mlp: str = "shared",
        upscaling: str = "two_2x2",
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be 1 or more, got {num_classes}")
        if class_mlp not in ("shared", "per_class"):
            raise ValueError(f"class_mlp must be 'shared' or 'per_class', got {class_mlp!r}")
        if upscaling not in UPSCALINGS:
            raise ValueError(f"upscaling must be one of {list(UPSCALINGS)}, got {upscaling!r}")
        widths = [dim, dim, dim, dim // 8]

        self.positional_encoding = RandomFourierEncoding(dim)
        self.transformer = TwoWayTransformer(
            dim,
            depth,
            num_heads,
            mlp_dim,
            MultiscalePooling(pool_sizes) if multiscale_pooling else nn.Identity(),
        )
        self.upscaling = UPSCALINGS[upscaling](dim)
        self.class_mlp: nn.Module = Mlp(widths, nn.ReLU) if class_mlp == "shared" else nn.Identity()
        self.seg_layers = SegLayers(num_classes, dim, widths if class_mlp == "per_class" else None)

    def forward(self, embedding: Tensor) -> Tensor:
        """Image embedding (B, dim, h, w) -> logits (B, K, 4h, 4w) in float32 or better."""
        grid = embedding.shape[2], embedding.shape[3]
        psi = self.positional_encoding(grid)
        queries = self.seg_layers.queries.expand(embedding.shape[0], -1, -1)
        queries, embedding = self.transformer(queries, embedding, psi)

        class_embedding = self.seg_layers.class_mlp(self.class_mlp(queries))  # one of the two is the identity
        return recomputed(self._logits, embedding, class_embedding, enabled=self.recompute)

    def _logits(self, embedding: Tensor, class_embedding: Tensor) -> Tensor:
        """Evaluate Eq. 8 before interpolation and non-linearity: F_trans(H) . F_MLP(q')."""
        features = self.upscaling(embedding)
        # In fp16 the logits of confident networks could leave its range.
        with without_autocast(features):
            pixels = at_least_float32(to_tokens(features))
            logits = pixels @ at_least_float32(class_embedding).transpose(1, 2)  # (B, 16 h w, K)
        return to_map(logits, (features.shape[2], features.shape[3])).contiguous()

    @property
    def deep_supervision(self) -> bool:
        """Always False: there is one output, at one resolution. nnU-Net sets this name on every decoder."""
        return False

    @deep_supervision.setter
    def deep_supervision(self, enabled: bool) -> None:
        refuse_deep_supervision(enabled)


class SegLayers(nn.Module):
    """The K class queries (K, dim) and, with ``widths``, one MLP per class."""

    def __init__(self, num_classes: int, dim: int, widths: Sequence[int] | None) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_classes, dim))
        self.class_mlp: nn.Module = PerClassMlp(num_classes, widths) if widths is not None else nn.Identity()


class PerClassMlp(nn.Module):
    """K MLPs with ReLU side by side: (B, K, widths[0]) -> (B, K, widths[-1]), class k through its own weights."""

    def __init__(self, num_classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            PerClassLinear(num_classes, width_in, width_out)
            for width_in, width_out in zip(widths[:-1], widths[1:], strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        for index, layer in enumerate(self.layers):
            x = layer(x if index == 0 else F.relu(x))
        return x.transpose(0, 1)


class PerClassLinear(nn.Module):
    """K linear layers as one batched product: (K, B, in_features) -> (K, B, out_features).

    Each class starts from the distribution of nn.Linear: uniform within 1 / sqrt(in_features).
    """

    def __init__(self, num_classes: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = in_features**-0.5
        self.weight = nn.Parameter(torch.empty(num_classes, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_classes, 1, out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


def two_2x2(dim: int) -> nn.Sequential:
    """F_trans of the first version, two transposed convolutions: (B, dim, h, w) -> (B, dim / 8, 4h, 4w)."""
    return nn.Sequential(
        nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2),
        LayerNorm2d(dim // 4),
        nn.GELU(),
        nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2),
        nn.GELU(),
    )


def one_4x4(dim: int) -> nn.Sequential:
    """F_trans of the second version, one transposed convolution: (B, dim, h, w) -> (B, dim / 8, 4h, 4w)."""
    return nn.Sequential(nn.ConvTranspose2d(dim, dim // 8, kernel_size=4, stride=4), nn.GELU())


UPSCALINGS = {"two_2x2": two_2x2, "one_4x4": one_4x4}


def refuse_deep_supervision(enabled: bool) -> None:
    """Raise ValueError if deep supervision is requested."""
    if enabled:
        raise ValueError(
            "deep_supervision=True: this network has one output at one resolution and no deep supervision. Train with "
            "a trainer that sets enable_deep_supervision = False, such as nnUNetTrainerHRMedSeg or "
            "nnUNetTrainerSegMaFormer."
        )
