"""ETC: a long stream with a window, and a short global stream that sees all and is seen by all.

Paper    Ainslie et al. 2020, "ETC: Encoding Long and Structured Inputs in Transformers", arXiv 2004.08483,
         section 3.
Formula  long row i: softmax over the long rows within `radius` and all global rows; global row: softmax over
         all global and all long rows; score (q_i . k_j + q_i . a_label(i,j) + b_label(i,j)) / sqrt(D).
         Then LN(x + A(x)), LN(x + F(x)) for both streams
Cost     time O((N (radius + L) + L^2) dim) for L global rows, memory O(N (dim + labels))
Differs  Labels of two long rows are their clipped distances; labels of the other pairs may be any integers.
         Masks inside the window are left out. Projections have no biases. As the official code does, the
         feed-forward and its norm are one for both streams. Packed documents are refused.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mapformers.blocks.base import Block, Site
from mapformers.blocks.etc_attention import PROJECTIONS, GlobalLocal, GlobalLocalAttention, Projections
from mapformers.blocks.feed_forward import ACTIVATIONS, Activation, FeedForward
from mapformers.core.card import Card, capabilities, option, options_of
from mapformers.core.carry import Carry
from mapformers.core.draw import normal
from mapformers.core.errors import require, require_known
from mapformers.heads.projection import Sizes

LEAST = {"radius": 0, "global_tokens": 0, "max_distance": 0, "labels": 1, "hidden": 0}


@dataclass(frozen=True)
class EtcConfig:
    """Options of the etc block."""

    radius: int = option(84, "long rows that a long row sees on each side, besides itself")
    global_tokens: int = option(16, "global rows that the learned start has; 0 = they come from below")
    max_distance: int = option(12, "distances from here on share a label")
    labels: int = option(3, "labels besides the distances, for pairs with a global row")
    projections: Projections = option(
        "shared", "q, k, v: one set for all, k and v by stream of the query, or by piece"
    )
    activation: Activation = option("gelu", "of the feed-forward")
    hidden: int = option(0, "units of the feed-forward; 0 = 4 dim")

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            require(value >= least, f"etc: {name} must be {least} or more, got {value}; use {name}={least}")
        require_known("etc", "projections", self.projections, PROJECTIONS)
        require_known("etc", "activation", self.activation, ACTIVATIONS)


class EtcBlock(Block):
    """One layer of both streams; the global one travels in carry.stream [B, L, dim].

    carry.labels may name the pairs "l2g" [B or 1, N, L], "g2l" [B or 1, L, N] and "g2g" [B or 1, L, L], for
    example whether a token belongs to the sentence of a global row. Labels below 2 max_distance + 1 are those
    of distances, `labels` more follow; a negative one hides the key. Where nothing is named, pairs of the two
    streams have the first label after the distances, and pairs of global rows that of their distance.
    """

    Config = EtcConfig
    card = Card(
        name="etc",
        kind="block",
        family="sparse, position-based (compound)",
        paper="Ainslie et al. 2020, arXiv 2004.08483",
        formula="softmax (q.k + q.a_label + b_label) / sqrt(D): window and globals for long rows, else all",
        cost="time O((N (radius + L) + L^2) dim), memory O(N (dim + labels)), L global rows",
        summary="a long stream with a window, a global stream beside it, relative labels",
        causal="refuses",
        supports=capabilities("bidirectional", "padding"),
        options=options_of(EtcConfig),
    )

    def __init__(self, config: EtcConfig, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        dim = self.dim = sizes.dim
        self.config = config
        seen = GlobalLocal(config.radius, config.max_distance, config.labels, config.projections)
        self.attention = GlobalLocalAttention(seen, sizes, generator)
        start = normal((config.global_tokens, dim), generator, dim**-0.5)
        self.start = nn.Parameter(start) if config.global_tokens else None
        self.feed_forward = FeedForward(dim, config.hidden or 4 * dim, config.activation, generator)
        self.long_norm, self.global_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.feed_forward_norm = nn.LayerNorm(dim)

    @classmethod
    def build(cls, config: EtcConfig, site: Site) -> "EtcBlock":
        """With heads of dim / heads; its labels know the distances."""
        require(
            not site.causal,
            "etc: causal is not supported, got causal=True; its global rows see all tokens: use causal=False",
        )
        require(
            not site.rotary, "etc: rotary is not supported, got rotary=True; its labels know the distance"
        )
        return cls(config, site.sizes("etc"), site.generator)

    def forward(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """x [B, N, dim]; carry.stream [B, L, dim], or None to begin with the learned start."""
        require(
            carry.segments is None,
            "etc: segments are not supported, got packed documents; unpack them into rows",
        )
        batch, _, dim = x.shape
        stream = carry.stream
        if stream is None and self.start is not None:
            stream = self.start.expand(batch, -1, -1)
        require(
            stream is not None,
            "etc: stream must come from the layer below, got none; use global_tokens=16 for example",
        )
        assert stream is not None
        require(
            stream.dim() == 3 and stream.shape[::2] == (batch, dim),
            f"etc: stream must have shape ({batch}, rows, {dim}), got {tuple(stream.shape)}; "
            "give global rows of the same size",
        )
        long, short = self.attention(x, stream, carry)
        x = self._feed(self.long_norm(x + long))
        return x, replace(carry, stream=self._feed(self.global_norm(stream + short)))

    def _feed(self, x: Tensor) -> Tensor:
        fed: Tensor = self.feed_forward_norm(x + self.feed_forward(x))
        return fed
