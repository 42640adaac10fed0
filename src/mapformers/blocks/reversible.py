"""The reversible block: two streams, each changed by a function of the other, so that both can be restored.

Paper    Kitaev, Kaiser, Levskaya 2020, "Reformer", ICLR, arXiv 2001.04451, section 3; Gomez et al. 2017,
         "The Reversible Residual Network", arXiv 1707.04585
Formula  y1 = x1 + A(LN x2), y2 = x2 + F(LN y1); inverse x2 = y2 - F(LN y1), x1 = y1 - A(LN x2)
Cost     its attention, and O(N dim hidden); in a stack (`run_reversible`) the activations of one block, and
         its forward twice
Differs  The streams begin as two copies of x; x is always their mean, and carry.stream half their difference.
         The paper concatenates them at the end. Its feed-forward in pieces is left out.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mapformers.attention.choices import Choices
from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.attention.result import AttentionState
from mapformers.blocks.base import Block, Site
from mapformers.blocks.dropout import draw_seed, seeded_dropout
from mapformers.blocks.feed_forward import ACTIVATIONS, Activation, FeedForward
from mapformers.core.card import Card, capabilities, option, options_of
from mapformers.core.carry import Carry
from mapformers.core.errors import require, require_known


class Streams(NamedTuple):
    """x1 and x2, [B, N, dim] each."""

    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, x: Tensor, carry: Carry) -> "Streams":
        """Out of their mean x and half their difference, carry.stream; without one, two copies of x."""
        if carry.stream is None:
            return cls(x, x)
        require(
            carry.stream.shape == x.shape,
            f"reversible: carry.stream must have the shape of x, {tuple(x.shape)}, got "
            f"{tuple(carry.stream.shape)}; do not mix it with blocks that have another second stream",
        )
        return cls(x + carry.stream, x - carry.stream)

    def into(self, carry: Carry) -> tuple[Tensor, Carry]:
        """Their mean, and a carry with half their difference, 0 at padding."""
        half = (self.first - self.second) / 2
        if carry.key_is_real is not None:
            half = half.masked_fill(~carry.key_is_real.unsqueeze(-1), 0.0)
        return (self.first + self.second) / 2, replace(carry, stream=half)


class Seeds(NamedTuple):
    """Of the dropout of both branches in one pass, so that a second pass drops the same."""

    attention: int | None = None
    feed: int | None = None


@dataclass(frozen=True)
class ReversibleConfig:
    """Options of the reversible block."""

    attention: str = option("full", "spec of the attention, as for mf.attention")
    project: str = option("multi_head", "spec of its projection; shared_qk for reformer")
    activation: Activation = option("gelu", "of the feed-forward")
    hidden: int = option(0, "units of the feed-forward; 0 = 4 dim")
    dropout: float = option(0.0, "of both branches, in training")

    def __post_init__(self) -> None:
        require_known("reversible", "activation", self.activation, ACTIVATIONS)
        require(self.hidden >= 0, f"reversible: hidden must be 0 or more, got {self.hidden}; 0 means 4 dim")
        require(0 <= self.dropout < 1, f"reversible: dropout must lie in [0, 1), got {self.dropout}; use 0.1")


class ReversibleBlock(Block):
    """Attention and feed-forward on two streams."""

    Config = ReversibleConfig
    card = Card(
        name="reversible",
        kind="block",
        family="sparse, content-based",
        paper="Kitaev et al. 2020, arXiv 2001.04451; Gomez et al. 2017, arXiv 1707.04585",
        formula="y1 = x1 + A(LN x2), y2 = x2 + F(LN y1); x the mean of both",
        cost="its attention, and O(N dim hidden); a stack keeps the activations of one block",
        summary="attention and feed-forward on two streams that can be restored",
        supports=capabilities("bidirectional", "causal", "padding", "segments", "decode"),
        options=options_of(ReversibleConfig),
    )

    def __init__(
        self, config: ReversibleConfig, attention: MultiHeadAttention, generator: torch.Generator
    ) -> None:
        super().__init__()
        dim = attention.sizes.dim
        self.config = config
        self.attention = attention
        self.feed_forward = FeedForward(dim, config.hidden or 4 * dim, config.activation, generator)
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)

    @classmethod
    def build(cls, config: ReversibleConfig, site: Site) -> "ReversibleBlock":
        """With the attention and the projection that the config names."""
        return cls(config, site.attention(config.attention, config.project), site.generator)

    def forward(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """x [B, N, dim], the mean of the streams; the other half of them travels in carry.stream."""
        streams, seeds = Streams.of(x, carry), self.draw_seeds()
        attended, losses = self.attend(streams.second, carry, seeds.attention)
        first = streams.first + attended
        return Streams(first, streams.second + self.feed(first, seeds.feed)).into(carry.add_losses(losses))

    def inverse(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """What `forward` was given, out of what it returned. In evaluation, or without dropout."""
        streams = Streams.of(x, carry)
        second = streams.second - self.feed(streams.first)
        return Streams(streams.first - self.attend(second, carry)[0], second).into(carry)

    def draw_seeds(self) -> Seeds:
        """Those of one pass; none where nothing is dropped."""
        drops = self.training and self.config.dropout > 0
        return Seeds(draw_seed(), draw_seed()) if drops else Seeds()

    def attend(
        self, second: Tensor, carry: Carry, seed: int | None = None, choices: Choices | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the first stream gains from the second, [B, N, dim], and the auxiliary losses."""
        result = self.attention.attend(self.attention_norm(second), carry, choices)
        return seeded_dropout(result.output, self.config.dropout, seed), result.losses

    def feed(self, first: Tensor, seed: int | None = None) -> Tensor:
        """What the second stream gains from the first, [B, N, dim]."""
        return seeded_dropout(self.feed_forward(self.feed_forward_norm(first)), self.config.dropout, seed)

    def init_state(self, batch_size: int = 1) -> AttentionState:
        """An empty decode state."""
        return self.attention.init_state(batch_size)

    def step(self, x: Tensor, carry: Carry, state: AttentionState) -> tuple[Tensor, Carry, AttentionState]:
        """The next tokens x [B, n, dim]; carry.stream [B, n, dim] is theirs too."""
        streams = Streams.of(x, carry)
        attended, state = self.attention.step(self.attention_norm(streams.second), state, carry.key_is_real)
        first = streams.first + attended
        return *Streams(first, streams.second + self.feed(first)).into(carry), state

    def update_centroids(self) -> None:
        """Those of the attention."""
        self.attention.update_centroids()

    def telemetry(self) -> dict[str, float]:
        """Those of the attention."""
        return self.attention.telemetry()
