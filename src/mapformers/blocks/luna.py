"""Luna: a short second stream reads the sequence, and the sequence reads the short stream.

Paper    Ma et al. 2021, "Luna: Linear Unified Nested Attention", arXiv 2106.01540, section 3
Formula  P' = MHA(P, X, X); Y = MHA(X, P', P'); X <- LN(X + Y), X <- LN(X + F(X)); P <- LN(P + P').
         Causal: Y by running means (blocks/luna_causal.py), and P stays as it is
Cost     time O(N length dim)
Differs  Both attentions have separate key and value projections (the official code ties them).
"""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from mapformers.blocks.base import Block, Site
from mapformers.blocks.feed_forward import ACTIVATIONS, Activation, FeedForward
from mapformers.blocks.luna_causal import LunaState, RunningPack
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
        supports=capabilities("bidirectional", "causal", "padding", "decode"),
        options=options_of(LunaConfig),
    )

    def __init__(self, config: LunaConfig, site: Site) -> None:
        super().__init__()
        dim, generator = site.dim, site.generator
        self.config = config
        if site.causal:
            self.running = RunningPack(site.sizes("luna"), generator)
        else:
            self.pack, self.unpack = site.attention("full"), site.attention("full")
            self.stream_norm = nn.LayerNorm(dim)
        self.causal, self.dim = site.causal, dim
        self.start = (
            nn.Parameter(normal((config.length, dim), generator, dim**-0.5)) if config.learned_start else None
        )
        self.feed_forward = FeedForward(dim, config.hidden or 4 * dim, config.activation, generator)
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)

    @classmethod
    def build(cls, config: LunaConfig, site: Site) -> "LunaBlock":
        """With one attention to pack and one to unpack, or running means."""
        require(not site.rotary, "luna: rotary is not supported, got rotary=True; add positions to the input")
        return cls(config, site)

    def forward(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """x [B, N, dim]; carry.stream [B, length, dim], or None to begin with the learned start."""
        require(
            carry.segments is None,
            "luna: segments are not supported, got packed documents; unpack them into rows",
        )
        stream = self._stream(x, carry)
        if self.causal:
            read, _ = self.running(x, stream, carry.key_is_real, self.init_state(x.shape[0]))
            return self._finish(x, read), replace(carry, stream=stream)
        packed = self.pack(stream, context=x, context_is_real=carry.key_is_real)  # [B, length, dim]
        x = self._finish(x, self.unpack(x, context=packed))
        return x, replace(carry, stream=self.stream_norm(stream + packed))

    def init_state(self, batch_size: int = 1) -> LunaState:
        """Nothing seen. Raises MapformersError for blocks that are not causal."""
        require(self.causal, "luna: decoding needs causal=True, got causal=False; make a causal block")
        return self.running.empty(batch_size, self.config.length)

    def step(self, x: Tensor, carry: Carry, state: LunaState) -> tuple[Tensor, Carry, LunaState]:
        """The next tokens x [B, n, dim]."""
        stream = self._stream(x, carry)
        read, state = self.running(x, stream, carry.key_is_real, state)
        return self._finish(x, read), replace(carry, stream=stream), state

    def _stream(self, x: Tensor, carry: Carry) -> Tensor:
        if carry.stream is not None:
            return carry.stream
        require(
            self.start is not None,
            "luna: stream must come from the layer below, got none; use learned_start=True",
        )
        assert self.start is not None
        return self.start.expand(x.shape[0], -1, -1)  # [B, length, dim]

    def _finish(self, x: Tensor, read: Tensor) -> Tensor:
        """The residuals, the norms and the feed-forward."""
        x = self.attention_norm(x + read)
        output: Tensor = self.feed_forward_norm(x + self.feed_forward(x))
        return output
