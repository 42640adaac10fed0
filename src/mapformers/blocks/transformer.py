"""The Transformer block: attention, then feed-forward, each with a residual.

Paper    Vaswani et al. 2017, arXiv 1706.03762, section 3.1 (post-norm); Xiong et al. 2020, arXiv 2002.04745
         (pre-norm)
Formula  pre: x + A(LN x), then x + F(LN x); post: LN(x + A(x)), then LN(x + F(x))
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
from mapformers.core.card import Card, capabilities, option, options_of
from mapformers.core.carry import Carry
from mapformers.core.errors import require, require_known

NORMS = ("pre", "post")


@dataclass(frozen=True)
class TransformerConfig:
    """Options of the transformer block."""

    attention: str = option("full", "spec of the attention, as for mf.attention")
    norm: Literal["pre", "post"] = option("pre", "where the layer norms stand")
    activation: Activation = option("gelu", "of the feed-forward")
    hidden: int = option(0, "units of the feed-forward; 0 = 4 dim")
    dropout: float = option(0.0, "of both branches, in training")

    def __post_init__(self) -> None:
        require_known("transformer", "norm", self.norm, NORMS)
        require_known("transformer", "activation", self.activation, ACTIVATIONS)
        require(self.hidden >= 0, f"transformer: hidden must be 0 or more, got {self.hidden}; 0 means 4 dim")
        require(
            0 <= self.dropout < 1, f"transformer: dropout must lie in [0, 1), got {self.dropout}; use 0.1"
        )


class TransformerBlock(Block):
    """Attention and feed-forward with residuals."""

    Config = TransformerConfig
    card = Card(
        name="transformer",
        kind="block",
        family="baseline",
        paper="Vaswani et al. 2017, arXiv 1706.03762; Xiong et al. 2020, arXiv 2002.04745",
        formula="x + A(LN x), then x + F(LN x) (pre); LN(x + A(x)), then LN(x + F(x)) (post)",
        cost="its attention, and O(N dim hidden)",
        summary="attention, then feed-forward",
        supports=capabilities("bidirectional", "causal", "padding", "segments", "decode"),
        options=options_of(TransformerConfig),
    )

    def __init__(
        self, config: TransformerConfig, attention: MultiHeadAttention, generator: torch.Generator
    ) -> None:
        super().__init__()
        dim = attention.sizes.dim
        self.config = config
        self.attention = attention
        self.feed_forward = FeedForward(dim, config.hidden or 4 * dim, config.activation, generator)
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)

    @classmethod
    def build(cls, config: TransformerConfig, site: Site) -> "TransformerBlock":
        """With the attention that the config names."""
        return cls(config, site.attention(config.attention), site.generator)

    def forward(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """x [B, N, dim]; the carry brings padding, documents and positions, and takes the auxiliary
        losses.
        """
        y = self.attention_norm(x) if self.config.norm == "pre" else x
        result = self.attention.attend(y, carry)
        return self._finish(x, result.output), result.carry

    def init_state(self, batch_size: int = 1) -> AttentionState:
        """An empty decode state."""
        return self.attention.init_state(batch_size)

    def step(self, x: Tensor, carry: Carry, state: AttentionState) -> tuple[Tensor, Carry, AttentionState]:
        """The next tokens x [B, n, dim]."""
        y = self.attention_norm(x) if self.config.norm == "pre" else x
        result, state = self.attention.advance(y, carry, state)
        return self._finish(x, result.output), result.carry, state

    def update_centroids(self) -> None:
        """Those of the attention."""
        self.attention.update_centroids()

    def telemetry(self) -> dict[str, float]:
        """Those of the attention."""
        return self.attention.telemetry()

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The residuals, the norms and the feed-forward."""
        x = x + F.dropout(attended, self.config.dropout, self.training)
        if self.config.norm == "post":
            x = self.attention_norm(x)
            return self.feed_forward_norm(x + self._feed(x))
        return x + self._feed(self.feed_forward_norm(x))

    def _feed(self, x: Tensor) -> Tensor:
        return F.dropout(self.feed_forward(x), self.config.dropout, self.training)
