"""LazyFormer: the attention weights of one layer serve the layers above it too.

Paper    Ying, Ke, He, Liu 2021, "LazyFormer: Self Attention with Lazy Update", arXiv 2102.12702.
Formula  layer 1: x + A(x) V_1, then F; layers 2 .. depth: x + A V_l(x), then F, with the A of layer 1
Cost     queries, keys and the plan once for `depth` layers; decoding keeps one set of keys for all of them
Differs  One block holds all layers that share weights. The weights are made again from the kept queries and
         keys, so no map of scores stays in memory and every mechanism can be shared, with what it chose.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.attention.result import AttentionState
from mapformers.blocks.base import Block, Site
from mapformers.blocks.feed_forward import ACTIVATIONS, Activation, FeedForward
from mapformers.blocks.lazy_attention import LazyState, ReusedAttention
from mapformers.core.card import Card, capabilities, option, options_of
from mapformers.core.carry import Carry
from mapformers.core.errors import require, require_known


@dataclass(frozen=True)
class LazyformerConfig:
    """Options of the lazyformer block."""

    attention: str = option("full", "spec of the attention, as for mf.attention")
    depth: int = option(2, "layers that share its weights")
    norm: Literal["pre", "post"] = option("pre", "where the layer norms stand")
    activation: Activation = option("gelu", "of the feed-forwards")
    hidden: int = option(0, "units of a feed-forward; 0 = 4 dim")
    dropout: float = option(0.0, "of all branches, in training")

    def __post_init__(self) -> None:
        require_known("lazyformer", "norm", self.norm, ("pre", "post"))
        require_known("lazyformer", "activation", self.activation, ACTIVATIONS)
        require(self.depth >= 1, f"lazyformer: depth must be 1 or more, got {self.depth}; use 2")
        require(self.hidden >= 0, f"lazyformer: hidden must be 0 or more, got {self.hidden}; 0 means 4 dim")
        require(0 <= self.dropout < 1, f"lazyformer: dropout must lie in [0, 1), got {self.dropout}; use 0.1")


class LazyformerBlock(Block):
    """Several layers under one set of attention weights."""

    Config = LazyformerConfig
    card = Card(
        name="lazyformer",
        kind="block",
        family="attention with prior",
        paper="Ying et al. 2021, arXiv 2102.12702",
        formula="x + A V_l(x), then F, with one A for `depth` layers",
        cost="queries, keys and plan once for `depth` layers",
        summary="several layers use the attention weights of the first",
        supports=capabilities("bidirectional", "causal", "padding", "segments", "decode"),
        options=options_of(LazyformerConfig),
    )

    def __init__(
        self, config: LazyformerConfig, attention: MultiHeadAttention, generator: torch.Generator
    ) -> None:
        super().__init__()
        dim, layers = attention.sizes.dim, range(config.depth)
        self.config = config
        self.attention = attention
        self.reused = nn.ModuleList(ReusedAttention(attention, generator) for _ in layers[1:])
        self.feed_forward = nn.ModuleList(
            FeedForward(dim, config.hidden or 4 * dim, config.activation, generator) for _ in layers
        )
        self.attention_norm = nn.ModuleList(nn.LayerNorm(dim) for _ in layers)
        self.feed_forward_norm = nn.ModuleList(nn.LayerNorm(dim) for _ in layers)

    @classmethod
    def build(cls, config: LazyformerConfig, site: Site) -> "LazyformerBlock":
        """With the attention that the config names."""
        return cls(config, site.attention(config.attention), site.generator)

    def forward(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """x [B, N, dim]."""
        result = self.attention.attend(self._before(0, x), carry)
        x = self._behind(0, x, result.output)
        for index, layer in enumerate(self.reused, start=1):
            x = self._behind(index, x, layer(self._before(index, x), self.attention, result.call))
        return x, result.carry

    def init_state(self, batch_size: int = 1) -> LazyState:
        """An empty decode state."""
        empty = self.attention.init_state(batch_size)
        return LazyState(empty.length, [list(empty.parts) for _ in range(self.config.depth)])

    def step(self, x: Tensor, carry: Carry, state: LazyState) -> tuple[Tensor, Carry, LazyState]:
        """The next tokens x [B, n, dim]."""
        if x.shape[1] > 1:
            state.part()
        first = AttentionState(state.length, state.layers[0])
        result, first = self.attention.advance(self._before(0, x), carry, first)
        layers = [first.parts]
        x = self._behind(0, x, result.output)
        for index, layer in enumerate(self.reused, start=1):
            read, parts = layer.step(self._before(index, x), self.attention, result.call, state.layers[index])
            layers.append(parts)
            x = self._behind(index, x, read)
        state = LazyState(first.length, layers)
        state.share()
        return x, result.carry, state

    def update_centroids(self) -> None:
        """Those of the attention."""
        self.attention.update_centroids()

    def telemetry(self) -> dict[str, float]:
        """Those of the attention."""
        return self.attention.telemetry()

    def _before(self, index: int, x: Tensor) -> Tensor:
        return self.attention_norm[index](x) if self.config.norm == "pre" else x

    def _behind(self, index: int, x: Tensor, attended: Tensor) -> Tensor:
        """The residuals, the norms and the feed-forward of one layer."""
        feed, norm = self.feed_forward[index], self.feed_forward_norm[index]
        rate = self.config.dropout
        x = x + F.dropout(attended, rate, self.training)
        if self.config.norm == "post":
            x = self.attention_norm[index](x)
            return norm(x + F.dropout(feed(x), rate, self.training))  # type: ignore[no-any-return]
        return x + F.dropout(feed(norm(x)), rate, self.training)
