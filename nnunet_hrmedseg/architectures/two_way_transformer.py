"""Two-way transformer between class queries and image tokens: Eq. 6-7 of HRMedSeg (arXiv 2504.06205v1).

The layout is that of SAM's mask decoder (arXiv 2304.02643, appendix A): layer normalization after each step, the
queries added to themselves as their positional encoding wherever they are compared with something.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_hrmedseg.architectures.layers import Mlp, to_map, to_tokens, without_autocast
from nnunet_hrmedseg.architectures.recompute import Recomputable, recomputed

__all__ = ["RandomFourierEncoding", "TwoWayTransformer"]


class TwoWayTransformer(Recomputable):
    """Layers of Eq. 6-7, then a last attention from the queries to the image.

    Args:
        dim: width of queries and image tokens.
        depth: number of layers.
        num_heads: heads of every attention.
        mlp_dim: hidden width of the queries' MLP.
        delta: the multi-scale module of Eq. 6-7, (B, dim, h, w) -> the same.
    """

    def __init__(self, dim: int, depth: int, num_heads: int, mlp_dim: int, delta: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayLayer(dim, num_heads, mlp_dim, first=(index == 0)) for index in range(depth))
        self.final_attention = Attention(dim, dim // 2, num_heads)
        self.final_norm = nn.LayerNorm(dim)
        self.delta = delta

    def forward(self, queries: Tensor, image: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        """Update queries and image embedding.

        Args:
            queries: class queries (B, K, dim).
            image: image embedding H (B, dim, h, w).
            psi: positional encoding (h * w, dim).

        Returns:
            queries (B, K, dim) and image embedding (B, dim, h, w).
        """
        grid = image.shape[2], image.shape[3]
        query_encoding = queries
        tokens = to_tokens(image)
        for layer in self.layers:
            queries, tokens = recomputed(
                self._layer, layer, queries, tokens, query_encoding, psi, grid, enabled=self.recompute
            )
        queries = recomputed(self._last_attention, queries, tokens, query_encoding, psi, enabled=self.recompute)
        return queries, to_map(tokens, grid)

    def _layer(
        self, layer: nn.Module, q: Tensor, tokens: Tensor, query_encoding: Tensor, psi: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        pooled = to_tokens(self.delta(to_map(tokens, grid)))
        return layer(q, tokens, pooled, query_encoding, psi)

    def _last_attention(self, q: Tensor, tokens: Tensor, query_encoding: Tensor, psi: Tensor) -> Tensor:
        return self.final_norm(q + self.final_attention(q + query_encoding, tokens + psi, tokens))


class TwoWayLayer(nn.Module):
    """Self-attention of the queries q', queries to image (Eq. 6), MLP of the queries, image to queries (Eq. 7)."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attention = Attention(dim, dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.query_to_image = Attention(dim, dim // 2, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp([dim, mlp_dim, dim], nn.ReLU)
        self.norm3 = nn.LayerNorm(dim)
        self.image_to_query = Attention(dim, dim // 2, num_heads)
        self.norm4 = nn.LayerNorm(dim)

    def forward(
        self, q: Tensor, tokens: Tensor, pooled: Tensor, query_encoding: Tensor, psi: Tensor
    ) -> tuple[Tensor, Tensor]:
        """q, query_encoding (B, K, dim); image tokens H and delta(H) (B, N, dim); psi (N, dim) -> new q and H."""
        if self.first:
            q = self.norm1(self.self_attention(q, q, q))
        else:
            q = self.norm1(q + self.self_attention(q + query_encoding, q + query_encoding, q))

        # Eq. 6: q' <- softmax(q' (H + psi)^T / sqrt(d)) delta(H) + q'
        q = self.norm2(q + self.query_to_image(q + query_encoding, tokens + psi, pooled))

        q = self.norm3(q + self.mlp(q))

        # Eq. 7: H <- softmax((delta(H) + psi) q'^T / sqrt(d)) q' + delta(H)
        tokens = self.norm4(pooled + self.image_to_query(pooled + psi, q + query_encoding, q))
        return q, tokens


class Attention(nn.Module):
    """Multi-head softmax attention at width inner_dim: (B, n, dim) and twice (B, m, dim) -> (B, n, dim).

    There are few class queries and many image tokens. Matrix products are associative, so a projection of the many can
    be applied to the few: Q (K W)^T = (Q W^T) K^T, softmax(..) (V W) = (softmax(..) V) W. Each of the few then becomes
    num_heads vectors of width dim, and the many are never projected. This takes less time and memory as long as these
    vectors are fewer than inner_dim, and is used only then; the results are the same to rounding. With
    `fuse_projections` set to False everything is projected, as in the published code.
    """

    def __init__(self, dim: int, inner_dim: int, num_heads: int) -> None:
        super().__init__()
        if inner_dim % num_heads:
            raise ValueError(f"an attention of width {inner_dim} cannot be split into {num_heads} heads")
        self.num_heads = num_heads
        self.scale = (inner_dim // num_heads) ** -0.5
        self.query = nn.Linear(dim, inner_dim)
        self.key = nn.Linear(dim, inner_dim)
        self.value = nn.Linear(dim, inner_dim)
        self.projection = nn.Linear(inner_dim, dim)
        self.fuse_projections = True

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        few = self.num_heads * min(query.shape[1], key.shape[1]) < self.query.out_features
        if not (self.fuse_projections and few):
            out = F.scaled_dot_product_attention(
                self._heads(self.query(query)), self._heads(self.key(key)), self._heads(self.value(value))
            )
            return self.projection(out.transpose(1, 2).flatten(2))
        if query.shape[1] < key.shape[1]:
            return self._few_queries(query, key, value)
        return self._attend_with_few_keys(query, key, value)

    def _few_queries(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend without projecting keys and values, whose projections are applied to the queries and to the output.

        The bias of the keys adds the same to all scores of a query. It is included for its gradient, which is 0.
        """
        absorbed, of_bias = self._absorbed(self.query(query), self.key)
        scores = torch.baddbmm(of_bias.unsqueeze(2), absorbed, key.transpose(1, 2))  # (B, heads * n, m)
        attended = (scores.softmax(-1) @ value).unflatten(1, (self.num_heads, -1))  # (B, heads, n, dim)
        out = attended @ self.value.weight.unflatten(0, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, n, d)
        return self.projection(out.transpose(1, 2).flatten(2) + self.value.bias)

    def _attend_with_few_keys(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend without projecting the queries and the output, whose projections are applied to keys and values."""
        absorbed, of_bias = self._absorbed(self.key(key), self.query)
        scores = torch.baddbmm(of_bias.unsqueeze(1), query, absorbed.transpose(1, 2))  # (B, n, heads * m)
        attention = scores.unflatten(-1, (self.num_heads, -1)).softmax(-1).flatten(2)
        weight = self.projection.weight.unflatten(1, (self.num_heads, -1)).permute(1, 2, 0)  # (heads, d, dim)
        projected = (self._heads(self.value(value)) @ weight).flatten(1, 2)  # (B, heads * m, dim)
        return torch.baddbmm(self.projection.bias, attention, projected)

    def _absorbed(self, few: Tensor, projection: nn.Linear) -> tuple[Tensor, Tensor]:
        """Apply the projection of the other side, and the scale, to k projected vectors (B, k, inner_dim).

        Returns:
            the factor for the unprojected other side, (B, heads * k, dim), and what its bias adds, (B, heads * k).
        """
        heads = self._heads(few) * self.scale
        weight, bias = (p.unflatten(0, (self.num_heads, -1)) for p in (projection.weight, projection.bias))
        return (heads @ weight).flatten(1, 2), (heads @ bias.unsqueeze(-1)).flatten(1)

    def _heads(self, x: Tensor) -> Tensor:
        """Split (B, n, inner_dim) -> (B, heads, n, inner_dim / heads)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class RandomFourierEncoding(nn.Module):
    """psi: sine and cosine of random projections of the pixel position, as in SAM (arXiv 2006.10739).

    The projections are drawn once, from a normal distribution, and kept in the state dict.
    """

    gaussian: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"a Fourier encoding needs an even number of channels, got {dim}")
        self.register_buffer("gaussian", torch.randn(2, dim // 2))

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """Return the encoding (h * w, dim) of an h x w grid, row-major; float32 or better under any autocast."""
        with without_autocast(self.gaussian):
            y, x = (
                (torch.arange(size, dtype=self.gaussian.dtype, device=self.gaussian.device) + 0.5) * (2 / size) - 1
                for size in grid
            )
            angles = 2 * torch.pi * (x[None, :, None] * self.gaussian[0] + y[:, None, None] * self.gaussian[1])
            return torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(0, 1)
