"""Luna: a short second stream reads the sequence, and the sequence reads the short stream.

Paper    Ma et al. 2021, "Luna: Linear Unified Nested Attention", arXiv 2106.01540, section 3 (non-causal
         form)
Formula  P' = MHA(P, X, X); Y = MHA(X, P', P'); X <- LN(X + Y), X <- LN(X + F(X)); P <- LN(P + P')
Cost     time O(N length dim)
Differs  Both attentions have separate key and value projections (the official code ties them).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.blocks.base import Block, Site
from mapformers.blocks.feed_forward import ACTIVATIONS, Activation, FeedForward
from mapformers.core.card import Card, capabilities, option, options_of
from mapformers.core.carry import Carry
from mapformers.core.draw import normal
from mapformers.core.errors import require, require_known


@dataclass(frozen=True)
class LunaConfig:
    """Options of the luna block."""

    length: int = option(16, "rows of the second stream")
    activation: Activation = option("gelu", "of the feed-forward")
    hidden: int = option(0, "units of the feed-forward; 0 = 4 dim")
    learned_start: bool = option(
        True, "own a learned start of the second stream; only the first layer of a stack needs it"
    )

    def __post_init__(self) -> None:
        require(self.length >= 1, f"luna: length must be 1 or more, got {self.length}; use length=16")
        require(self.hidden >= 0, f"luna: hidden must be 0 or more, got {self.hidden}; 0 means 4 dim")
        require_known("luna", "activation", self.activation, ACTIVATIONS)


class LunaBlock(Block):
    """Two-stream block."""

    Config = LunaConfig
    card = Card(
        name="luna",
        kind="block",
        family="compressed memory",
        paper="Ma et al. 2021, arXiv 2106.01540",
        formula="P' = MHA(P, X, X); Y = MHA(X, P', P'); X <- LN(X + Y), LN(X + F(X)); P <- LN(P + P')",
        cost="time O(N length dim)",
        summary="pack the sequence into a short stream, read it back",
        causal="refuses",
        supports=capabilities("bidirectional", "padding"),
        options=options_of(LunaConfig),
    )

    def __init__(
        self,
        config: LunaConfig,
        pack: MultiHeadAttention,
        unpack: MultiHeadAttention,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        dim = pack.sizes.dim
        require(
            not pack.options.causal and not unpack.options.causal,
            "luna: causal is not supported in this form, got causal=True; use causal=False",
        )
        self.config, self.pack, self.unpack = config, pack, unpack
        self.start = (
            nn.Parameter(normal((config.length, dim), generator, dim**-0.5)) if config.learned_start else None
        )
        self.feed_forward = FeedForward(dim, config.hidden or 4 * dim, config.activation, generator)
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.stream_norm = nn.LayerNorm(dim)

    @classmethod
    def build(cls, config: LunaConfig, site: Site) -> "LunaBlock":
        """With one attention to pack and one to unpack."""
        require(not site.rotary, "luna: rotary is not supported, got rotary=True; add positions to the input")
        return cls(config, site.attention("full"), site.attention("full"), site.generator)

    def forward(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """x [B, N, dim]; carry.stream [B, length, dim], or None to begin with the learned start."""
        require(
            carry.segments is None,
            "luna: segments are not supported, got packed documents; unpack them into rows",
        )
        stream = carry.stream
        if stream is None:
            require(
                self.start is not None,
                "luna: stream must come from the layer below, got none; use learned_start=True",
            )
            assert self.start is not None
            stream = self.start.expand(x.shape[0], -1, -1)  # [B, length, dim]
        packed = self.pack(stream, context=x, context_is_real=carry.key_is_real)  # [B, length, dim]
        x = self.attention_norm(x + self.unpack(x, context=packed))
        x = self.feed_forward_norm(x + self.feed_forward(x))
        return x, replace(carry, stream=self.stream_norm(stream + packed))
