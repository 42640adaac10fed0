"""Linformer: keys and values are compressed along the sequence to `rank` rows by learned projections.

Paper    Wang, Li, Khabsa, Fang, Ma 2020, "Linformer", arXiv 2006.04768, section 4.
Formula  w = softmax(q (E k)^T / sqrt(D)) F, E and F [rank, M] learned: per head, shared by the heads
         (sharing="headwise"), one for keys and values of all heads (sharing="key_value"), or that one
         for all layers of a model (sharing="layerwise")
Cost     time O(N rank D), memory O(N rank)
Differs  E and F take their column by true position among real tokens, and padding is zeroed before them:
         the public codes ignore padding. Shorter inputs use the first columns. Causal use is refused: every
         row of E k mixes all positions.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mapformers.core.card import Card, capabilities, option, options_of
from mapformers.core.draw import uniform
from mapformers.core.errors import require, require_known
from mapformers.core.mechanism import Cost, Mechanism, Shape
from mapformers.core.plans import Dense, Plan
from mapformers.core.scope import Scope
from mapformers.kernels.softmax import expand_heads, scaled_scores

Sharing = Literal["none", "headwise", "key_value", "layerwise"]


@dataclass(frozen=True)
class LinformerConfig:
    """Options of linformer."""

    rank: int = option(64, "rows to which keys and values are compressed")
    length: int = option(1024, "longest sequence of keys: columns of the learned projections")
    sharing: Sharing = option("none", "who shares projections")

    def __post_init__(self) -> None:
        require(
            self.rank >= 1, f"linformer: rank must be 1 or more, got {self.rank}; use rank=64 for example"
        )
        require(
            self.length >= 1, f"linformer: length must be 1 or more, got {self.length}; use the longest input"
        )
        require_known("linformer", "sharing", self.sharing, get_args(Sharing))


class Linformer(Mechanism):
    """Learned low-rank compression of keys and values."""

    Config = LinformerConfig
    config: LinformerConfig
    card = Card(
        name="linformer",
        family="compressed memory",
        paper="Wang et al. 2020, arXiv 2006.04768",
        formula="w = softmax(q (E k)^T / sqrt(D)) F with learned E, F [rank, M]",
        cost="time O(N rank D), memory O(N rank)",
        summary="keys and values compressed by learned projections",
        causal="refuses",
        supports=capabilities("bidirectional", "padding", "cross", "grouped"),
        options=options_of(LinformerConfig),
    )

    @property
    def shared_over_layers(self) -> tuple[str, ...]:
        """The one projection, where all layers share it."""
        return ("key_projection",) if self.config.sharing == "layerwise" else ()

    def check_causal(self, causal: bool) -> None:
        """Say why not."""
        require(
            not causal,
            "linformer: causal is not supported, since compressed keys mix all positions, got causal=True; "
            "use causal=False or another mechanism",
        )

    def build(self, shape: Shape, generator: torch.Generator) -> None:
        """E and F, uniform in +-1/sqrt(rank)."""
        heads = shape.heads if self.config.sharing == "none" else 1
        size, bound = (heads, self.config.rank, self.config.length), self.config.rank**-0.5
        self.key_projection = nn.Parameter(uniform(size, generator, bound))
        if self.config.sharing in ("none", "headwise"):
            self.value_projection = nn.Parameter(uniform(size, generator, bound))

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """New keys E k, new values F v."""
        mix_keys = self._columns(self.key_projection, k.shape[2], scope)
        mix_values = self._columns(self._of_values(), k.shape[2], scope)
        return Dense(keys=mix_keys.to(k.dtype) @ expand_heads(k, q.shape[1]), value_mix=mix_values)

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """softmax(q (E k)^T) F as one [B, H, N, M] matrix, token by token over the real ones."""
        heads, m = q.shape[1], k.shape[2]
        k = expand_heads(k, heads)
        real = torch.ones(k.shape[0], m, dtype=torch.bool) if scope.key_is_real is None else scope.key_is_real
        rows = []
        for b in range(k.shape[0]):
            kept = real[b].nonzero().squeeze(-1)
            place = scope.positions_of_keys(m, k.device).expand(k.shape[0], -1)[b, kept]
            compressed = self.key_projection[:, :, place] @ k[b, :, kept]  # [H, rank, D]
            mixed = (
                scaled_scores(q[b : b + 1], compressed[None])[0].softmax(-1) @ self._of_values()[:, :, place]
            )
            rows.append(mixed.new_zeros(heads, q.shape[2], m).index_copy(2, kept, mixed))
        return torch.stack(rows)

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Compress keys and values, then score and read `rank` rows."""
        return Cost(
            flops=8.0 * batch * heads * n * self.config.rank * dim,
            bytes=8.0 * batch * heads * n * self.config.rank,
        )

    def _of_values(self) -> Tensor:
        """F [H or 1, rank, length]."""
        return self.value_projection if hasattr(self, "value_projection") else self.key_projection

    def _columns(self, projection: Tensor, m: int, scope: Scope) -> Tensor:
        """[1 or B, H, rank, M] the projection's columns for these keys, zero at padding."""
        require(
            m <= self.config.length,
            f"linformer: keys must be at most length={self.config.length}, got {m}; raise length or "
            "shorten the input",
        )
        if scope.key_is_real is None and scope.key_positions is None and scope.positions is None:
            return projection[None, :, :, :m]
        place = scope.positions_of_keys(m, projection.device)  # [B or 1, M]
        require(
            int(place.max()) < self.config.length,
            f"linformer: positions must be below length={self.config.length}, got {int(place.max())}; "
            "raise length",
        )
        columns = projection[:, :, place].permute(2, 0, 1, 3)  # [B or 1, H, rank, M]
        return columns if scope.key_is_real is None else columns * scope.key_is_real[:, None, None, :]
