"""The decoder block of an encoder-decoder: attention, attention to a context, feed-forward.

Paper    Vaswani et al. 2017, arXiv 1706.03762, section 3.1; Xiong et al. 2020, arXiv 2002.04745
Formula  x + A(LN x), then x + C(LN x, context), then x + F(LN x)
Cost     that of its two attentions, and O(N dim hidden)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.attention.result import AttentionState
from mapformers.blocks.transformer import TransformerBlock, TransformerConfig
from mapformers.core.carry import Carry
from mapformers.core.errors import require


class DecoderBlock(TransformerBlock):
    """A Transformer block that reads the context of the carry between attention and feed-forward."""

    def __init__(
        self,
        config: TransformerConfig,
        attention: MultiHeadAttention,
        cross: MultiHeadAttention,
        generator: torch.Generator,
    ) -> None:
        super().__init__(config, attention, generator)
        require(
            config.norm == "pre",
            f"decoder: norm must be pre, got {config.norm}; post-norm decoders are not there",
        )
        for mechanism in cross.parts():
            mechanism.check_cross()
            require(
                "cross" in mechanism.card.supports and not mechanism.mixes_queries,
                f"decoder: cross must read a context query by query, got {mechanism.card.name}, which "
                "does not; use full, routing, linear or memory_compressed",
            )
        self.cross = cross
        self.cross_norm = nn.LayerNorm(attention.sizes.dim)

    def forward(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """x [B, N, dim]; carry.context [B, M, dim] with its padding in carry.context_is_real."""
        result = self.attention.attend(self.attention_norm(x), carry)
        return self._read(x + self._dropped(result.output), result.carry)

    def step(self, x: Tensor, carry: Carry, state: AttentionState) -> tuple[Tensor, Carry, AttentionState]:
        """The next tokens x [B, n, dim]; the context is read anew."""
        result, state = self.attention.advance(self.attention_norm(x), carry, state)
        x, carry = self._read(x + self._dropped(result.output), result.carry)
        return x, carry, state

    def update_centroids(self) -> None:
        """Those of both attentions."""
        self.attention.update_centroids()
        self.cross.update_centroids()

    def _read(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        require(
            carry.context is not None,
            "decoder: context must be given, got none; pass what the encoder has made",
        )
        assert carry.context is not None
        result = self.cross.read(self.cross_norm(x), carry.context, carry)
        x = x + self._dropped(result.output)
        return x + self._feed(self.feed_forward_norm(x)), result.carry

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.config.dropout, self.training)
